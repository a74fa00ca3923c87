"""What a stage may minimise, by the name that a recipe gives it, and what a stage of each kind may say."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leyden.align.preference import Preference, PreferenceSettings
from leyden.align.process_rewards import LabelledSteps
from leyden.align.reward_models import RewardModelSettings, ScoredPairs
from leyden.align.sft import Sft
from leyden.recipes.sections import DataSection, Rows
from leyden.train import Objective, Pretrain

if TYPE_CHECKING:
    from leyden.recipes.schema import TrainingStage


@dataclass(frozen=True)
class StageKind:
    """What a stage with some objective is.

    Attributes:
        make: its objective.
        rows: the key of ``[data]`` that names the rows it trains on; None: it trains on documents, or on prompts.
        on_prompts: it trains on what the model answers to prompts (``[stage.rl]``), and reads no data.
        keys: keys of a stage that mean something to some kinds alone, of which these are this one's.
        scores: it trains a score head, which the model then has (``model.score_head``).
        check: raises a ValueError where a stage of this kind cannot be carried out as it is written.
    """

    make: "Callable[[TrainingStage], Objective]"
    rows: Rows | None = None
    on_prompts: bool = False
    keys: frozenset[str] = frozenset()
    scores: bool = False
    check: "Callable[[TrainingStage], None]" = lambda _: None


def _check_rollouts(stage: "TrainingStage") -> None:
    """Refuse reinforcement learning without its table, and what has no meaning there."""
    if stage.rl is None:
        raise ValueError(f"objective '{stage.objective}' needs a table [stage.rl]")
    if stage.tokens is not None or stage.minutes is not None:
        raise ValueError("the completions have a length of their own; give the stage steps, or epochs of its prompts")
    if stage.batch_tokens != stage.micro_batch_tokens:
        raise ValueError(
            "a step learns from the completions that were drawn, however many tokens they have; leave batch_tokens "
            "out, and bound memory by micro_batch_tokens"
        )
    plain = {"batch": "stated", "lr_changes": (), "decay_tokens": None, "packing": "concatenate", "data": None}
    for name, value in plain.items():
        if getattr(stage, name) != value:
            raise ValueError(f"{name} is for stages that read data; leave it out")
    alone = stage.rl.critic.alone_steps
    if stage.steps is not None and alone >= stage.steps:
        raise ValueError(
            f"rl.critic.alone_steps ({alone}) leaves none of the {stage.steps} steps to the policy; give the stage "
            "more steps, or the critic fewer alone"
        )
    if stage.rl.max_tokens >= stage.seq_len:
        raise ValueError(
            f"seq_len ({stage.seq_len}) must have room for a prompt and rl.max_tokens ({stage.rl.max_tokens}) behind it"
        )


def _check_chats(stage: "TrainingStage") -> None:
    """Refuse multi-token prediction in a loss that is no mean over tokens."""
    if stage.normalise != "tokens" and stage.mtp_weight != type(stage).model_fields["mtp_weight"].default:
        raise ValueError(
            f"mtp_weight weighs a mean over tokens, and normalise = '{stage.normalise}' takes another; leave one of "
            "them out"
        )


OBJECTIVES: "Mapping[str, StageKind]" = {
    "pretrain": StageKind(lambda _: Pretrain(), keys=frozenset({"mtp_weight", "fim"})),
    "sft": StageKind(
        lambda stage: Sft(stage.normalise),
        rows="chats",
        keys=frozenset({"normalise", "mtp_weight"}),
        check=_check_chats,
    ),
    "preference": StageKind(Preference, rows="preferences", keys=frozenset(PreferenceSettings.model_fields)),
    "reward": StageKind(ScoredPairs, rows="preferences", keys=frozenset(RewardModelSettings.model_fields), scores=True),
    "process_reward": StageKind(lambda _: LabelledSteps(), rows="solutions", scores=True),
    "rl": StageKind(
        lambda stage: stage.rollouts.objective(),
        on_prompts=True,
        keys=frozenset({"rl"}),
        check=_check_rollouts,
    ),
}
"""Every kind of stage. Another one is a line here."""

TRAINS_ON: Mapping[str, Rows] = {name: kind.rows for name, kind in OBJECTIVES.items() if kind.rows is not None}
"""The key of ``[data]`` that names the rows an objective trains on; the others train on documents."""

ON_PROMPTS = tuple(name for name, kind in OBJECTIVES.items() if kind.on_prompts)
"""Those that train on what the model answers to prompts, and read no data."""


def check_stage(stage: "TrainingStage") -> None:
    """Refuse a stage that says what its objective has no use for, or that cannot be carried out.

    Raises:
        ValueError: with the reason; the caller names the stage.
    """
    kind = OBJECTIVES[stage.objective]
    for name in _keys_of_some():
        if name not in kind.keys and getattr(stage, name) != type(stage).model_fields[name].default:
            takers = " or ".join(f"'{other}'" for other, one in OBJECTIVES.items() if name in one.keys)
            raise ValueError(f"{name} is for objective = {takers}, and objective is '{stage.objective}'; leave it out")
    kind.check(stage)


def _keys_of_some() -> Iterator[str]:
    """The keys that some kinds of stage have no use for, each once."""
    yield from dict.fromkeys(key for kind in OBJECTIVES.values() for key in sorted(kind.keys))


def check_rows(stage: "TrainingStage", data: DataSection) -> None:
    """Refuse an objective without the rows that it trains on, and rows under another.

    Raises:
        ValueError: with the reason; the caller names the stage.
    """
    on, has = OBJECTIVES[stage.objective].rows, data.rows
    if on != has:
        where = "its [stage.data]" if stage.data is not None else "[data], which it is trained on,"
        needs = f"{on}, and {where} names none: say {on} = [...]" if on else f"documents, and {where} is {has}"
        raise ValueError(f"objective '{stage.objective}' trains on {needs}")
    if on in ("preferences", "solutions") and stage.mixture is not None:
        raise ValueError(f"{on} are not mixed; leave mixture out")
    if on == "chats" and stage.mixture is not None and (stage.mixture.transition or stage.mixture.late):
        raise ValueError(
            "chats are one group, all, of which a mixture gives the classes of lengths; leave transition and late out"
        )
