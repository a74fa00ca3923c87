"""The router's choice of experts as one kernel forward and one backward, in float32."""

from typing import Any

import torch

from leyden.ops.launching import Kernels, blocks, power_of_two
from leyden.ops.routing import kernels as jitted

kernels = Kernels(jitted)

_TILE = 1024
"""Probabilities that a program holds."""


def _tiles(num_tokens: int, num_experts: int, top_k: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and the static shapes of both kernels."""
    width = power_of_two(num_experts)
    rows = max(1, _TILE // width)
    shapes = {"E": num_experts, "K": top_k, "BE": width, "BK": power_of_two(top_k), "ROWS": rows}
    return (blocks(num_tokens, rows),), shapes


@torch.library.custom_op("leyden::route", mutates_args=())
def _forward(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The experts, weights and probabilities of :class:`leyden.ops.Routing`."""
    N, E = logits.shape
    experts = logits.new_empty(N, top_k, dtype=torch.int64)
    weights, probabilities = logits.new_empty(N, top_k), logits.new_empty(N, E)
    grid, shapes = _tiles(N, E, top_k)
    kernels.route[grid](logits.contiguous(), probabilities, weights, experts, N, **shapes)
    return experts, weights, probabilities


@_forward.register_fake
def _(logits, top_k):
    N, E = logits.shape
    return logits.new_empty(N, top_k, dtype=torch.int64), logits.new_empty(N, top_k), logits.new_empty(N, E)


@torch.library.custom_op("leyden::route_backward", mutates_args=())
def _backward(
    experts: torch.Tensor,
    weights: torch.Tensor,
    probabilities: torch.Tensor,
    dweights: torch.Tensor | None,
    dprobabilities: torch.Tensor | None,
) -> torch.Tensor:
    """The gradient of the logits."""
    dlogits = torch.empty_like(probabilities)
    dweights, dprobabilities = (None if g is None else g.contiguous() for g in (dweights, dprobabilities))
    N, E = probabilities.shape
    grid, shapes = _tiles(N, E, experts.shape[1])
    kernels.route_backward[grid](
        probabilities, weights, experts, dprobabilities, dweights, dlogits, N, **shapes,
        HAS_DPROBABILITIES=dprobabilities is not None, HAS_DWEIGHTS=dweights is not None,
    )  # fmt: skip
    return dlogits


@_backward.register_fake
def _(experts, weights, probabilities, dweights, dprobabilities):
    return probabilities.new_empty(probabilities.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:
    _, dweights, dprobabilities = grads
    return _backward(*ctx.saved_tensors, dweights, dprobabilities), None


_forward.register_autograd(_differentiate, setup_context=_save)


def route_triton(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Experts, weights and probabilities; see :func:`leyden.ops.route`."""
    return _forward(logits, top_k)
