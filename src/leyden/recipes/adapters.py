"""What a run that trains adapters alone (``[train.lora]``) asks of the model that it begins from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from leyden.align.rollouts.settings import RolloutSettings
from leyden.checkpoint.adapter import fill_adapters, is_adapter_directory, read_adapter, write_adapter
from leyden.checkpoint.starting_model import StartingModel
from leyden.core.errors import UserError
from leyden.model import HybridLM
from leyden.model.lora import LoraConfig, adapter_parameters, base_of

_OF_BASE = ("vocab_size", "rope_theta", "rope_scaling", "max_position_embeddings")
"""What a run may otherwise change of a model, and an adapter cannot say."""


class _Stage(Protocol):
    name: str
    objective: str
    rl: RolloutSettings | None
    rope_theta: float | None
    rope_scaling: Any


def check_lora(starts_from: str | None, stages: Sequence[_Stage]) -> None:
    """Refuse adapters of no model, and stages that change the model itself.

    Raises:
        ValueError: there are such.
    """
    if starts_from is None:
        raise ValueError(
            "train.lora adds to a model that is there; name it (model.from), or leave [train.lora] out and train all "
            "weights"
        )
    scored = [stage.name for stage in stages if stage.objective == "reward"]
    if scored:
        raise ValueError(
            f"stage '{scored[0]}': a reward model's score head is trained whole, and train.lora trains additions to "
            "projections alone; leave [train.lora] out, or the stage"
        )
    judged = [stage.name for stage in stages if stage.rl is not None and stage.rl.algorithm.baseline == "critic"]
    if judged:
        raise ValueError(
            f"stage '{judged[0]}': its critic is a whole model that is trained, which train.lora is to spare; leave "
            "[train.lora] out, or take an algorithm without a critic"
        )
    stretched = [stage.name for stage in stages if stage.rope_theta is not None or stage.rope_scaling is not None]
    if stretched:
        raise ValueError(
            f"stage '{stretched[0]}': rope_theta and rope_scaling change the model itself, of which train.lora writes "
            "the additions alone; leave them out, or [train.lora]"
        )


def check_base(start: StartingModel, now: Mapping[str, Any]) -> None:
    """Refuse what ``[model]`` changes of a model: of adapters nothing is written but the additions.

    Args:
        start: the model.
        now: its shape as the recipe has it, as JSON values.

    Raises:
        UserError: it changes something that an adapter cannot say, or the model is an adapter itself.
    """
    name, before = start.name, start.config.model_dump(mode="json")
    if is_adapter_directory(start.directory):
        raise UserError(
            f"model.from = '{name}' is an adapter, and [train.lora] would train another one on top of it, which opens "
            f"nowhere. Merge the first: leyden convert {name} DIR --layout leyden; or give both trainings as stages of "
            "one recipe, which go on with one adapter."
        )
    other = [f"{key} {before[key]} -> {now[key]}" for key in _OF_BASE if before[key] != now[key]]
    if other:
        raise UserError(
            f"train.lora writes additions to model.from = '{name}' alone, and [model] changes that model: "
            f"{', '.join(other)}. Leave the change out, or [train.lora], and all weights are trained."
        )


def keep_adapters(model: HybridLM, place: Path, lora: LoraConfig) -> None:
    """Write the adapters of ``model`` as they are into ``place``, for :func:`reference_of`."""
    how = {"rank": lora.rank, "alpha": lora.alpha, "base": "", "fingerprint": None}
    write_adapter(adapter_parameters(model), model.config, place, **how)


def reference_of(model: HybridLM, place: Path) -> HybridLM:
    """The model as it was when its adapters were kept in ``place``; all but those is in the memory of ``model``."""
    reference = base_of(model)
    fill_adapters(reference, read_adapter(place, model.config))
    return reference
