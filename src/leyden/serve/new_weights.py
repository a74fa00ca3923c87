"""New weights for the model of an engine: whether they fit, and putting them into the place of the old ones."""

import operator
from collections.abc import Mapping
from typing import Literal

import torch

from leyden.core.errors import UserError
from leyden.model import TRAINING_FIELDS, HybridLM, ModelConfig, Ranks
from leyden.model.quantized import scale_of
from leyden.ops import quantize_rows
from leyden.parallel.reshard import Resharding

Running = Literal["refuse", "finish", "abort"]
"""What becomes of requests that run when an engine is to take new weights, or to give its memory back."""

_MAX_LISTED = 8

_WRITES = operator.attrgetter("_version")


class WeightsWatch:
    """Sees whether the weights of a model became others.

    It sees modules and tensors that were replaced, and writes that PyTorch counts: those of optimizers and of
    ``copy_``. It does not see writes through ``tensor.data`` or through other programs' pointers.

    Args:
        model: as it is now.
    """

    def __init__(self, model: HybridLM) -> None:
        self._model = model
        self._config = model.config
        places = [
            (held, name, part)
            for module in model.modules()
            for held in (module._modules, module._parameters, module._buffers)
            for name, part in held.items()
        ]
        self._holders, self._names, self._parts = zip(*places, strict=True)
        self._tensors = [*model.parameters(), *model.buffers()]
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._versions = self._now()

    def changed(self) -> bool:
        """Whether a part of the model, or its RoPE base or scaling, is another than when this object was made.

        It is asked before steps, behind which a decoder filled the caches with weights: to touch 200 modules and 80
        tensors then takes 0.15 ms, although it loops in C.
        """
        parts = map(dict.get, self._holders, self._names)
        return (
            self._config is not self._model.config
            or not all(map(operator.is_, parts, self._parts))
            or self._versions != self._now()
        )

    def _now(self) -> list[int]:
        """Where each tensor lies, and how often it was written to."""
        return [*map(torch.Tensor.data_ptr, self._tensors), *map(_WRITES, self._counted)]


class WeightsUpdate:
    """Weights that fit a model, all of which have been checked and none of which is in it yet.

    Args:
        model: whose weights they are to become.
        source: a model of the same shape, or tensors by the names of ``model.state_dict()``.

    Raises:
        UserError: they do not fit; with all names and shapes that are wrong, as far as they are listed.
    """

    def __init__(self, model: HybridLM, source: HybridLM | Mapping[str, torch.Tensor]) -> None:
        _check_kind(model, source)
        self._model = model
        self._rope = model.config.rope
        if isinstance(source, HybridLM):
            _check_config(model.config, source.config)
            self._rope = source.config.rope
            source = source.state_dict()
        self._targets = model.state_dict()
        self._sources = _fitting(model.config, self._targets, source)

    def put(self) -> None:
        """Write the weights into the model's own tensors, in their dtypes; matrices of 8 bits are rounded anew."""
        for name, given in self._sources.items():
            target, given = self._targets[name], given.detach()
            if target.dtype == torch.int8 and given.dtype != torch.int8:
                values, scale = quantize_rows(given.to(target.device))
                _write(target, values)
                _write(self._targets[scale_of(name)], scale)
            else:
                _write(target, given)
        if self._rope != self._model.config.rope:
            self._model.set_rope(self._rope)


def updating(
    model: HybridLM, source: HybridLM | Mapping[str, torch.Tensor] | Resharding
) -> "WeightsUpdate | Resharding":
    """What puts the weights of ``source`` into ``model``.

    Raises:
        UserError: they do not fit.
    """
    if not isinstance(source, Resharding):
        return WeightsUpdate(model, source)
    if source.serving is not model:
        raise UserError(
            "this resharding is for another model than the engine's; make one with the engine's model, Resharding(..., "
            "serving=engine.model)."
        )
    return source


def _write(target: torch.Tensor, values: torch.Tensor) -> None:
    if values.data_ptr() == target.data_ptr() and values.dtype == target.dtype:
        return
    with torch.inference_mode(target.is_inference()), torch.no_grad():
        target.copy_(values)


def _check_kind(model: HybridLM, source: object) -> None:
    if not isinstance(source, HybridLM | Mapping):
        raise UserError(
            f"update_weights takes a model, or tensors by name as model.state_dict() gives them; given a "
            f"{type(source).__name__}. Give nothing where the engine's own model was changed in place."
        )
    for part in (model, source):
        if isinstance(part, HybridLM) and type(part.ranks) is not Ranks:
            raise UserError(
                "update_weights cannot copy by name between models of which several ranks have a part each, because "
                "no rank has all weights; give a leyden.parallel.Resharding, which moves each rank's parts."
            )


def _check_config(have: ModelConfig, given: ModelConfig) -> None:
    differing = [
        f"{name} is {getattr(given, name)!r}, and {getattr(have, name)!r} in the engine"
        for name in ModelConfig.model_fields
        if name not in {*TRAINING_FIELDS, "rope_theta", "rope_scaling"} and getattr(given, name) != getattr(have, name)
    ]
    if differing:
        raise UserError(
            f"the given model is of another shape than the engine's: {_listed(differing)}. Nothing was changed; make "
            "a new engine for a model of another shape."
        )


def _fitting(
    config: ModelConfig, targets: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Of ``given`` what is to be written, by name.

    Raises:
        UserError: all that is wrong with it.
    """
    derived = {scale_of(name): name for name, target in targets.items() if target.dtype == torch.int8}
    tied = {name for name in targets if config.tie_word_embeddings and name.startswith("lm_head.")}
    problems = [f"{name} is not a weight of this model" for name in given if name not in targets]
    found: dict[str, torch.Tensor] = {}
    for name, target in targets.items():
        values = given.get(name)
        if values is None:
            if name not in derived and name not in tied:
                problems.append(f"{name} is missing")
            continue
        problem = _problem(target, values)
        if problem is None and name in derived and _dtype(given.get(derived[name])) != torch.int8:
            problem = "is the scale of a matrix that was not given in 8 bits"
        if problem is None and target.dtype == torch.int8 == values.dtype and scale_of(name) not in given:
            problem = f"is in 8 bits, and its scale {scale_of(name)} is missing"
        if problem is not None:
            problems.append(f"{name} {problem}")
        elif name not in tied:
            found[name] = values
        elif not torch.equal(values, given.get(f"embed_tokens.{name.rpartition('.')[2]}", values)):
            problems.append(f"{name} is not equal to the embedding, to which this model ties it")
    if problems:
        raise UserError(
            f"these weights do not fit the engine's model: {_listed(problems)}. Nothing was changed; give all weights "
            "of a model of the same shape, by the names of model.state_dict()."
        )
    return found


def _dtype(values: torch.Tensor | None) -> torch.dtype | None:
    return None if values is None else values.dtype


def _problem(target: torch.Tensor, values: torch.Tensor) -> str | None:
    if not isinstance(values, torch.Tensor) or values.is_meta:
        return "is not a tensor with values"
    if values.shape != target.shape:
        return f"is {list(values.shape)}, and {list(target.shape)} in the engine"
    if target.dtype == torch.int8 and values.is_floating_point():
        return None if bool(values.isfinite().all()) else "has an element that is infinite or no number"
    if values.dtype != target.dtype and not (values.is_floating_point() and target.is_floating_point()):
        return f"is {values.dtype}, and {target.dtype} in the engine"
    return None


def _listed(problems: list[str]) -> str:
    more = len(problems) - _MAX_LISTED
    return "; ".join([*problems[:_MAX_LISTED], *([f"and {more} more"] if more > 0 else [])])
