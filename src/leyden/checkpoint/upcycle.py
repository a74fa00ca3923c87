"""Upcycling: the feed-forwards of a trained model become experts, so that training goes on with a larger model
(arXiv 2212.05055; with finer experts, arXiv 2410.07524, section 3).

Every expert is a copy of a feed-forward, or one of G equal parts of a copy: part g has the hidden dims from ``g F / G``
on. A feed-forward is the sum of its parts, ``f(x) = sum_g f_g(x)``. The copies of all parts of one feed-forward are a
*virtual group*, whose rows in the router are equal, so that a token that chooses a group gets all of its parts, with
equal weights. With T groups chosen out of softmax weights that are divided by their sum, each part of group t weighs
``p_t / (G sum p)``, and the result is ``f(x) / G``: down projections are multiplied by G, and the model computes what
it computed before. A power of two changes no bit of a weight.

Copies of one expert of a mixture share its row too. All of them have to be chosen together, which makes each expert
weigh what it weighed before.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from leyden.checkpoint.hub import find_model
from leyden.checkpoint.made_model import write_made
from leyden.checkpoint.model_directory import open_stored
from leyden.checkpoint.model_place import refuse_to_overwrite
from leyden.checkpoint.starting_model import StartingModel
from leyden.checkpoint.stored_model import StoredModel
from leyden.checkpoint.tensor_files import SHARD_BYTES
from leyden.core.errors import UserError
from leyden.core.log import say
from leyden.model import ModelConfig
from leyden.model.initialization import draw_normal, initial_weight
from leyden.parallel import Part

UPCYCLE_FILE = "upcycle.json"
"""Beside the weights: of which model, and how."""

_EXPERTS = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")


@dataclass(frozen=True)
class Upcycling:
    """How experts are made.

    Attributes:
        experts: how many a layer has.
        top_k: how many of them a token is sent to; None: 2 feed-forwards' worth of a dense model, and of a mixture what
            keeps its function.
        parts: G, into how many finer experts a feed-forward is cut.
        noise: the standard deviation of what is added to every weight of an expert, as a share of the root mean square
            of its matrix.
        seed: of the noise and of the router of a dense model.
    """

    experts: int
    top_k: int | None = None
    parts: int = 1
    noise: float = 0.0
    seed: int = 0


def upcycle(
    model: str | Path,
    target: str | Path,
    how: Upcycling,
    *,
    layout: str | None = None,
    replace_old: bool = False,
    file_bytes: int = SHARD_BYTES,
) -> None:
    """Write ``model`` with experts in place of its feed-forwards, or with more experts than it has.

    Args:
        model: a directory in any layout, a run, a checkpoint or a hub id.
        target: a directory that does not exist, or is empty.
        how: experts are made.
        layout: in which it is written; None: that of transformers where it can express the model, else Leyden's.
        replace_old: an older model in ``target`` is replaced; never ``model``.
        file_bytes: a file is no larger, unless one tensor is.

    Raises:
        UserError: sizes that do not fit each other or this model, a model that :func:`leyden.checkpoint.load` refuses,
            or a target that is not free. Nothing is written then.
    """
    directory, target = find_model(model).absolute(), Path(target)
    refuse_to_overwrite(directory, target, replace_old)
    stored = open_stored(directory)
    config, how = upcycled_config(stored.config, how)
    copies = how.experts // (max(1, stored.config.num_local_experts) * how.parts)
    if stored.config.num_local_experts and copies > 1 and not how.noise:
        say(
            f"the {copies} copies of each expert get the same tokens with the same weights, and learn the same; "
            "--noise 0.01 lets them part."
        )
    weights = _Upcycled(stored, config, how)
    noted = {**StartingModel(str(model), directory).record(), "layout": stored.layout}
    noted |= {"experts": how.experts, "top_k": how.top_k, "parts": how.parts, "noise": how.noise, "seed": how.seed}
    write_made(
        weights,
        config,
        stored.weights.dtype,
        stored.tokenizer,
        target,
        title=f"making {how.experts} experts a layer",
        notes={UPCYCLE_FILE: noted},
        layout=layout,
        file_bytes=file_bytes,
    )


def upcycled_config(config: ModelConfig, how: Upcycling) -> tuple[ModelConfig, Upcycling]:
    """The shape of the model with experts, and ``how`` with ``top_k`` said.

    Raises:
        UserError: sizes that do not fit each other or this model, with those that do.
    """
    held, parts, experts = config.num_local_experts, how.parts, how.experts
    width = config.intermediate_size if held else config.dense_width
    if how.noise < 0 or not math.isfinite(how.noise):
        raise UserError(f"--noise is a share of 0 or more, as in 0.01; given {how.noise:g}.")
    if parts < 1 or width % parts:
        raise UserError(
            f"--parts {parts} does not divide the hidden width of {width} of a feed-forward; take one of its divisors."
        )
    group = max(1, held) * parts
    if experts % group or (held and experts == held):
        of = f"the model has {held} experts" if held else "the model is dense"
        least = group if group > max(1, held) else 2 * group
        raise UserError(
            f"{of}, and each feed-forward gives {parts} part{'s' if parts > 1 else ''}: --experts must be a multiple "
            f"of {group}, and more than there are, as in {max(least, 2)}; given {experts}."
        )
    top_k = _mixture_top_k(config, how) if held else _dense_top_k(how)
    changes: dict[str, Any] = {
        "num_local_experts": experts,
        "num_experts_per_tok": top_k,
        "intermediate_size": width // parts,
    }
    dense = held and ("dense" in config.mlp_kinds() or config.nextn_mlp_type == "dense")
    changes["dense_intermediate_size"] = config.dense_width if dense else None
    said = {key: value for key, value in config.model_dump().items() if held or key != "nextn_mlp_type"}
    return ModelConfig.parse(said | changes, "the upcycled model"), replace(how, top_k=top_k)


def _dense_top_k(how: Upcycling) -> int:
    groups = how.experts // how.parts
    top_k = min(2, groups) * how.parts if how.top_k is None else how.top_k
    if top_k % how.parts or not 1 <= top_k <= how.experts:
        raise UserError(
            f"--top-k {top_k}: a token gets all {how.parts} parts of a feed-forward, so --top-k must be a multiple of "
            f"{how.parts} up to {how.experts}."
        )
    return top_k


def _mixture_top_k(config: ModelConfig, how: Upcycling) -> int:
    top_k = config.num_experts_per_tok * how.experts // config.num_local_experts
    if how.top_k not in (None, top_k):
        raise UserError(
            f"--top-k {how.top_k}: a token of this model has {config.num_experts_per_tok} of "
            f"{config.num_local_experts} experts, and keeps its result with all their parts and copies alone: {top_k} "
            f"of {how.experts}. Leave --top-k out; as many experts as --parts gives cost no more operations a token."
        )
    if config.router == "sigmoid_groups" and not (config.norm_topk_prob and config.topk_group == config.n_group):
        raise UserError(
            "the model's router limits a token to some groups of experts, or does not divide weights by their sum "
            "(topk_group, norm_topk_prob); with copies of experts it would choose and weigh otherwise. Models with the "
            "router softmax_topk, or without groups and with norm_topk_prob, can be upcycled."
        )
    return top_k


class _Upcycled:
    """The weights of the larger model (:class:`leyden.checkpoint.made_model.MadeWeights`)."""

    def __init__(self, stored: StoredModel, config: ModelConfig, how: Upcycling) -> None:
        self._weights, self._config, self._how = stored.weights.in_memory(), config, how
        self._held = max(1, stored.config.num_local_experts)
        self._is_dense = not stored.config.num_local_experts
        self._last: tuple[str, int, torch.Tensor] | None = None  # a layout asks for an expert matrix by matrix

    def part(self, name: str, part: Part) -> torch.Tensor:
        """What ``part`` says of the weight ``name``, in float64; of experts, one at a time."""
        binding = self._weights.bindings.get(name)
        if binding is not None and binding.shape == part.shape:
            return self._weights.part(name, part).double()
        if name.endswith(_EXPERTS):
            (((first, last),), *others) = part.spans
            each = [Part(part.shape[1:], tuple(others)).cut(self._expert(name, e)) for e in range(first, last)]
            return torch.stack(each)
        return part.cut(self._router(name))

    def _router(self, name: str) -> torch.Tensor:
        """Its matrix or bias: a row for each group, or each expert there was, said once for all that share it."""
        if self._is_dense:
            shape = (self._how.experts // self._how.parts, self._config.hidden_size)
            rows = initial_weight(name, shape, self._config, self._how.seed)
        else:
            rows = self._weights[name]
        return rows.double().repeat_interleave(self._how.experts // len(rows), dim=0)

    def _expert(self, name: str, expert: int) -> torch.Tensor:
        """[2F, D] or [D, F] float64 of one expert."""
        if self._last is None or self._last[:2] != (name, expert):
            matrix, noise = self._copied(name, expert), self._how.noise
            if noise:
                drawn = draw_normal(f"upcycle {name}.{expert}", tuple(matrix.shape), self._how.seed)
                matrix = matrix + drawn.double() * (noise * matrix.square().mean().sqrt())
            self._last = (name, expert, matrix)
        return self._last[2]

    def _copied(self, name: str, expert: int) -> torch.Tensor:
        how, f = self._how, self._config.intermediate_size
        source, g = expert * self._held // how.experts, expert % how.parts
        hidden, F = (g * f, (g + 1) * f), how.parts * f
        D = self._config.hidden_size
        if name.endswith("down_proj"):
            return self._read(name, source, (D, F), (((0, D),), (hidden,))) * how.parts
        columns = ((0, D),)
        if not self._is_dense:
            up = (F + hidden[0], F + hidden[1])
            return self._read(name, source, (2 * F, D), ((hidden, up), columns))
        halves = [name.replace("gate_up_proj", half) for half in ("gate_proj", "up_proj")]
        return torch.cat([self._read(half, source, (F, D), ((hidden,), columns)) for half in halves])

    def _read(self, name: str, expert: int, shape: tuple[int, int], spans: tuple[Any, ...]) -> torch.Tensor:
        """A part of a matrix, in float64: of the dense feed-forward, or of one expert."""
        if self._is_dense:
            return self._weights.part(name.replace(".experts", "") + ".weight", Part(shape, spans)).double()
        one = Part((self._held, *shape), (((expert, expert + 1),), *spans))
        return self._weights.part(name, one)[0].double()
