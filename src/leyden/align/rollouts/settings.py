"""The table ``[stage.rl]`` of a recipe: prompts, rewards, how completions are drawn and what is learned from them."""

from collections.abc import Callable
from typing import Literal, Self

from pydantic import Field, model_validator

from leyden.align.policy import PolicyGradient
from leyden.align.policy.algorithm import Algorithm
from leyden.align.policy.critic import CriticSettings
from leyden.core.config import Config
from leyden.model import HybridLM
from leyden.serve.config import EngineConfig

RewardKind = Literal["math", "exact", "code", "ifeval", "rules", "model", "process"]


class RolloutSettings(Config):
    """Online reinforcement learning, as a stage of a recipe."""

    prompts: tuple[str, ...] = ()
    """Files and folders of rows with a ``prompt`` and what the reward needs, or ``hf://OWNER/NAME``."""
    reward: RewardKind | None = None
    """What grades a completion of such a row, as ``leyden reward`` does."""
    reward_model: str | None = None
    """Of ``reward = "model"`` and ``"process"``: the reward model, a run, a checkpoint, a directory or a hub id."""
    environment: str | None = None
    """In place of both: ``FILE.py:CLASS`` or ``MODULE:CLASS``, a class with ``prompts`` and ``score``; or
    ``verifiers:TASKSET``."""
    teacher: str | None = None
    """The model that the divergence is from, in place of the model at the beginning of the stage: a run, a checkpoint,
    a directory or a hub id, with the same tokenizer."""
    group_size: int = Field(default=8, ge=1, le=128)
    """Completions of each prompt, which are compared with each other; 1 with a critic alone."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Prompts of which completions are drawn before the weights change."""
    max_tokens: int = Field(default=256, ge=1)
    """Tokens of a completion at most; a longer one is cut, and graded as it is."""
    max_turns: int = Field(default=1, ge=1)
    """Answers of a rollout at most, between which the ``reply`` of the environment stands; ``max_tokens`` counts it."""
    round_tokens: int = Field(default=0, ge=0)
    """Tokens by which a rollout grows in a round at most; one that has not ended then is set aside, and goes on in the
    next round, by the newer weights. 0: every rollout is drawn to its end."""
    max_rounds: int | None = Field(default=None, ge=1)
    """Of ``round_tokens``: rounds in which a rollout is drawn at most; one that has not ended then is ended there, and
    graded as it is. None: as many as it takes to ``max_tokens``."""
    call_seconds: float = Field(default=60.0, gt=0)
    """Seconds by the clock that one call of the environment's ``score`` or ``reply`` may take; then it is ended, and
    the completion has no reward."""
    temperature: float = Field(default=1.0, gt=0)
    """The policy is the model with its logits divided by this, in drawing and in learning."""
    updates: int = Field(default=1, ge=1)
    """How often the optimizer goes through the drawn completions before new ones are drawn."""
    mini_batches: int = Field(default=1, ge=1)
    """Into how many optimizer steps each time is divided; divides ``prompts_per_step``."""
    redraws: int = Field(default=0, ge=0)
    """How often further prompts are asked in place of those whose rewards are all equal (DAPO's dynamic sampling)."""
    length_weight: float = Field(default=0.0, ge=0)
    """Of the length reward of Kimi k1.5: of the right completions to a prompt the shorter ones are better."""
    overlong_tokens: int = Field(default=0, ge=0)
    """Of DAPO's soft penalty: so many tokens before ``max_tokens`` it begins, and grows to 1; 0: there is none."""
    max_drift: float | None = Field(default=None, gt=0)
    """The run stops where trainer and engine differ by more in the log-probability of a token. None: it goes on."""
    held_out: tuple[str, ...] = ()
    """Files of rows like those of ``prompts``, on which the reward is measured and which are not learned from. An
    environment has them in a method ``held_out``."""
    held_out_prompts: int = Field(default=64, ge=0)
    """How many of them are asked at most, each once, by the likeliest tokens."""
    kept_rollouts: int = Field(default=2, ge=0)
    """Completions that are kept in ``rollouts.jsonl``, each time that some are drawn."""
    algorithm: Algorithm = Algorithm()
    """A table: a preset, with settings that differ from it."""
    critic: CriticSettings = CriticSettings()
    """A table: of an algorithm that has a critic, what it begins as and how it learns."""
    engine: EngineConfig = EngineConfig()
    """A table of the keys of ``[serve]``: memory and work of the engine that draws."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.environment is not None and (self.prompts or self.reward or self.held_out):
            raise ValueError("environment brings prompts and rewards of its own; leave prompts, reward, held_out out")
        if self.environment is None and not (self.prompts and self.reward):
            raise ValueError('give prompts = ["FILE.jsonl"] and reward = "math", say, or environment = "FILE.py:CLASS"')
        if (self.reward in ("model", "process")) != (self.reward_model is not None):
            raise ValueError(
                'reward = "model" or "process" and reward_model = "DIR" go together; give both, or neither'
            )
        if self.teacher is not None and not self.algorithm.kl_weight:
            raise ValueError("teacher is what a divergence is from; give algorithm.kl_weight above 0, or leave it out")
        if self.algorithm.preset == "distillation" and self.teacher is None:
            raise ValueError('preset = "distillation" learns from a teacher; give teacher = "MODEL"')
        self._check_critic()
        if self.prompts_per_step % self.mini_batches:
            raise ValueError(
                f"mini_batches ({self.mini_batches}) must divide prompts_per_step ({self.prompts_per_step}): the "
                "completions of a prompt are learned in one step"
            )
        return self

    @model_validator(mode="after")
    def _rounds_agree(self) -> Self:
        if self.max_rounds is not None and not self.round_tokens:
            raise ValueError("max_rounds is of round_tokens, without which every rollout is drawn in one round")
        if self.round_tokens and self.redraws:
            raise ValueError(
                "redraws asks for as many groups with a signal as a step has, and with round_tokens a round does not "
                "know yet which of its groups will have one; set one of both to 0"
            )
        return self

    @model_validator(mode="after")
    def _penalty_fits(self) -> Self:
        if self.overlong_tokens > self.max_tokens:
            raise ValueError(
                f"overlong_tokens ({self.overlong_tokens}) is a part of max_tokens ({self.max_tokens}); give no more"
            )
        return self

    def objective(self, reference: Callable[[], HybridLM] | None = None) -> PolicyGradient:
        """What is minimised; ``reference`` as of :class:`leyden.align.policy.PolicyGradient`."""
        return PolicyGradient(self.algorithm, self.temperature, partial=bool(self.round_tokens), reference=reference)

    def _check_critic(self) -> None:
        """Refuse a critic of an algorithm that has none, and completions without anything to be compared with."""
        if self.algorithm.baseline == "critic":
            if self.group_size == 1 and self.redraws:
                raise ValueError(
                    "redraws replaces groups whose rewards are all equal, and those of one completion always are; give "
                    "group_size of 2 or more, or leave redraws out"
                )
            return
        if self.critic != CriticSettings():
            raise ValueError(
                'critic is of an algorithm with a critic: say algorithm.preset = "ppo" (or baseline = "critic"), or '
                "leave it out"
            )
        if self.group_size == 1:
            raise ValueError(
                "group_size = 1 leaves a completion nothing to be compared with; give 2 or more, or take a critic "
                '(algorithm.preset = "ppo")'
            )

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps between two drawings."""
        return self.updates * self.mini_batches
