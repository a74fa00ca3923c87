"""An algorithm of policy gradients as settings of a few functions, and the published ones as presets.

The papers do not print every constant. What is ours is marked in the comments of :data:`PRESETS`.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from leyden.core.config import Config
from leyden.core.errors import suggest

Baseline = Literal["group_mean", "leave_one_out", "critic"]
Scale = Literal["group", "batch", "none"]
Surrogate = Literal["clip", "cispo"]
RatioOf = Literal["token", "sequence"]
Denominator = Literal["sequences", "tokens", "constant"]
Divergence = Literal["k1", "k2", "k3", "minimax", "reverse", "forward", "jensen_shannon"]
WHOLE = ("reverse", "forward", "jensen_shannon")
"""Divergences of whole distributions over the vocabulary; the others are estimated from the token that was drawn."""


class Algorithm(Config):
    """What becomes of the rewards of a group, and what is minimised: the table ``[stage.rl.algorithm]``.

    A preset gives the settings, each of which may be changed.
    """

    preset: str = "minimax"
    """A name in :data:`PRESETS`, whose settings hold where no other is given."""
    baseline: Baseline = "group_mean"
    """What is subtracted from a reward: the mean of its group, the mean of the others in it (RLOO), or, token by token,
    what a critic expected (PPO)."""
    scale: Scale = "group"
    """What that is divided by: the standard deviation of its group, that of all rewards of the step, or nothing. With a
    critic, ``batch``: the advantages of all tokens that were drawn together get mean 0 and standard deviation 1."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Of a critic, the discount: what a reward is worth a token earlier."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Of a critic: how much is believed of the rewards that followed (1), against its later values (0)."""
    reward_weight: float = Field(default=1.0, ge=0)
    """What advantages are multiplied by; 0: rewards are measured, and only the divergence is learned from."""
    balance: bool = False
    """Scale the larger side down, so that good and bad completions of a step contribute alike (ours)."""
    surrogate: Surrogate = "clip"
    """``clip``: PPO's clipped ratio; ``cispo``: the clipped ratio as a constant weight of the log-probability."""
    ratio: RatioOf = "token"
    """Of each token, or of the sequence: the geometric mean of its tokens' ratios (GSPO)."""
    clip_low: float = Field(default=0.2, gt=0, le=1)
    """A ratio is clipped below 1 minus this; 1: not at all, since no ratio is negative."""
    clip_high: float = Field(default=0.2, ge=0)
    """A ratio is clipped above 1 plus this; 0: not at all."""
    drop_above: float = Field(default=0.0, ge=0)
    """A token with a negative advantage and a larger ratio is dropped; 0: none is."""
    denominator: Denominator = "sequences"
    """``sequences``: the mean over completions of the mean over tokens; ``tokens``: the mean over all tokens of the
    step; ``constant``: the sum over tokens, divided by ``max_tokens``, as a mean over completions."""
    kl: Divergence = "k3"
    """The divergence from the reference model that is minimised besides: an estimate from the tokens that were drawn,
    or one of :data:`WHOLE`."""
    kl_weight: float = Field(default=0.0, ge=0)
    """Its weight; 0: there is no reference model."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether the divergence is minimised besides, or taken from the reward of each token before advantages are
    computed, which takes a critic."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        name = given.get("preset", cls.model_fields["preset"].default)
        return {**PRESETS[name], **given} if isinstance(name, str) and name in PRESETS else given

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str) -> str:
        if preset not in PRESETS:
            raise ValueError(f"must be one of {', '.join(PRESETS)}{suggest(preset, PRESETS)}")
        return preset

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if 0 < self.drop_above <= 1:
            raise ValueError(
                f"drop_above ({self.drop_above}) would drop tokens whose ratio is 1, which are all of them at the "
                "first update; give more than 1, or 0 to drop none"
            )
        if not self.reward_weight and not (self.kl_weight and self.kl_in == "loss"):
            zero = "kl_weight = 0" if not self.kl_weight else 'kl_in = "reward"'
            raise ValueError(f"with reward_weight = 0 and {zero} there is nothing to learn from; raise one")
        return self

    @model_validator(mode="after")
    def _critic_agrees(self) -> Self:
        if self.baseline != "critic":
            fields = type(self).model_fields
            said = [name for name in ("gamma", "gae_lambda", "kl_in") if getattr(self, name) != fields[name].default]
            if said:
                raise ValueError(
                    f'{said[0]} is of the advantages of single tokens, which a critic gives; say baseline = "critic" '
                    'or preset = "ppo", or leave it out'
                )
            return self
        if self.scale == "group":
            raise ValueError(
                'a critic compares a completion with no group; with baseline = "critic", scale is "batch" or "none"'
            )
        if self.balance:
            raise ValueError("balance is of one advantage a completion, and a critic gives one a token; leave it out")
        if self.kl_in == "reward" and self.kl not in ("k1", "k2", "k3"):
            why = "is of all words" if self.kl in WHOLE else "is made for its gradient and is no divergence"
            raise ValueError(f'the term "{self.kl}" {why}; with kl_in = "reward", take kl = "k1", "k2" or "k3"')
        return self

    @property
    def estimates(self) -> bool:
        """Whether there is a divergence, and it is estimated from the tokens that were drawn."""
        return bool(self.kl_weight) and self.kl not in WHOLE


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # MiniMax-01 (arXiv 2501.08313, section 5) names three changes of GRPO and prints no constant. Ours are the
    # formula of the balance, the denominator, with which that has an effect, the threshold and the weight.
    "minimax": {"denominator": "tokens", "balance": True, "drop_above": 3.0, "kl": "minimax", "kl_weight": 0.04},
    # DeepSeekMath (arXiv 2402.03300, equations 3 and 4)
    "grpo": {"kl": "k3", "kl_weight": 0.04},
    # Understanding R1-Zero-like training (arXiv 2503.20783)
    "dr_grpo": {"scale": "none", "denominator": "constant"},
    # DAPO (arXiv 2503.14476, equation 8); its sampling and its penalty of long completions are settings of rollouts.
    "dapo": {"clip_high": 0.28, "denominator": "tokens"},
    # MiniMax-M1 (arXiv 2506.13585, equations 4 and 5), without a lower bound. The upper one is ours: weights to 5.
    "cispo": {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 4.0, "denominator": "tokens"},
    # GSPO (arXiv 2507.18071, equations 5 to 7)
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    # RLOO (arXiv 2402.14740): REINFORCE on whole sequences. The constant denominator only scales the sum.
    "rloo": {
        "baseline": "leave_one_out",
        "scale": "none",
        "clip_low": 1.0,
        "clip_high": 0.0,
        "denominator": "constant",
    },
    # PPO (arXiv 1707.06347) on language models: as InstructGPT (arXiv 2203.02155) has it, with its weight of the
    # divergence; lambda and whitened advantages as in TRL. The critic's own settings are a table, stage.rl.critic.
    "ppo": {
        "baseline": "critic",
        "scale": "batch",
        "denominator": "tokens",
        "kl": "k1",
        "kl_in": "reward",
        "kl_weight": 0.02,
    },
    # On-policy distillation (GKD, arXiv 2306.13649, with completions of the student alone and the reverse KL), from
    # a teacher (rl.teacher).
    "distillation": {"reward_weight": 0.0, "denominator": "tokens", "kl": "reverse", "kl_weight": 1.0},
}
"""By the name of an algorithm, where it differs from the defaults of :class:`Algorithm`."""
