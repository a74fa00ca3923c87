"""What is launched for the norms in Triton, and their gradients: one op for all three, whose parts may be absent."""

from dataclasses import dataclass
from typing import Any

import torch

from leyden.ops.launching import Kernels, blocks, last_dim_contiguous, power_of_two
from leyden.ops.rms_norm import kernels as jitted

kernels = Kernels(jitted)

_TILE = 2048
"""Elements of a program's tile, or one row where that is longer."""

_PARTIAL_SUMS = 1 << 21
"""Elements of the weight's gradient in parts, one a program: 8 MB, few beside the rows that keep a GPU busy."""

_FEWEST_PROGRAMS = 256
"""Of the backward, where rows are long: about two for each multiprocessor of a Hopper."""


_REGISTERS = 128
"""Of a thread of the backward: with 8 warps of these, two programs fit a multiprocessor, and no form spills."""


@dataclass(frozen=True)
class NormTiles:
    """Rows [rows, D] in tiles.

    Attributes:
        rows: of a tile.
        padded: D, up to a power of two.
        count: of tiles; none where there is nothing.
        programs: of the backward, each of which takes every so many-th tile.
    """

    rows: int
    padded: int
    count: int
    programs: int

    @classmethod
    def of(cls, num_rows: int, dim: int) -> "NormTiles":
        padded = power_of_two(dim)
        rows = max(1, _TILE // padded)
        count = blocks(num_rows, rows)
        return cls(rows, padded, count, min(count, max(_FEWEST_PROGRAMS, _PARTIAL_SUMS // padded)))

    def constants(self, added: torch.Tensor | None, gate: torch.Tensor | None, most_warps: int = 16) -> dict[str, Any]:
        return {
            "BD": self.padded, "ROWS": self.rows, "HAS_ADDED": added is not None, "HAS_GATE": gate is not None,
            "num_warps": min(most_warps, self.rows * self.padded // 512),
        }  # fmt: skip


def _row_stride(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.stride(0)


@torch.library.custom_op("leyden::rms_norm", mutates_args=())
def _forward(
    x: torch.Tensor,
    added: torch.Tensor | None,
    gate: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    alpha: float,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [N, D] to the normed rows and 1 / rms [N]; alpha and beta count where something is added."""
    N, D = x.shape
    y, rstd = torch.empty(N, D, dtype=x.dtype, device=x.device), x.new_empty(N, dtype=torch.float32)
    tiles = NormTiles.of(N, D)
    if tiles.count:
        kernels.normalise[(tiles.count,)](
            x, added, gate, weight, y, rstd, N, eps, alpha, beta, *map(_row_stride, (x, added, gate)),
            D=D, **tiles.constants(added, gate),
        )  # fmt: skip
    return y, rstd


@_forward.register_fake
def _(x, added, gate, weight, eps, alpha, beta):
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=torch.float32)


@torch.library.custom_op("leyden::rms_norm_backward", mutates_args=())
def _backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    added: torch.Tensor | None,
    gate: torch.Tensor | None,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    alpha: float,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, added, gate (empty where absent) and weight."""
    N, D = x.shape
    tiles = NormTiles.of(N, D)
    dx, dadded, dgate = (x.new_empty((0,) if of is None else (N, D)) for of in (x, added, gate))
    dweight = weight.new_empty(tiles.programs, D)
    if tiles.count:
        kernels.differentiate[(tiles.programs,)](
            dy, x, added, gate, weight, rstd, dx, dadded, dgate, dweight, N, alpha, beta,
            *map(_row_stride, (dy, x, added, gate)), D=D, **tiles.constants(added, gate, most_warps=8),
            maxnreg=_REGISTERS,
        )  # fmt: skip
    return dx, dadded, dgate, dweight.sum(0)


@_backward.register_fake
def _(dy, x, added, gate, weight, rstd, alpha, beta):
    dx, dadded, dgate = (x.new_empty((0,) if of is None else x.shape) for of in (x, added, gate))
    return dx, dadded, dgate, weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, added, gate, weight, _, ctx.alpha, ctx.beta = inputs
    ctx.save_for_backward(x, added, gate, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if grads[0] is None:
        return (None,) * 7
    x, added, gate, weight, rstd = ctx.saved_tensors
    dy = last_dim_contiguous(grads[0])
    dx, dadded, dgate, dweight = _backward(dy, x, added, gate, weight, rstd, ctx.alpha, ctx.beta)
    return dx, None if added is None else dadded, None if gate is None else dgate, dweight, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def rms_norm_triton(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    gate: torch.Tensor | None = None,
    added: torch.Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> torch.Tensor:
    """``norm(x * alpha + added * beta) * sigmoid(gate)``, of which ``added`` and ``gate`` may be absent.

    See :func:`leyden.ops.rms_norm`, :func:`leyden.ops.gated_rms_norm` and :func:`leyden.ops.residual_rms_norm`.
    """
    rows = (None if of is None else last_dim_contiguous(of.reshape(-1, x.shape[-1])) for of in (x, added, gate))
    return _forward(*rows, weight.float().contiguous(), eps, alpha, beta)[0].view(x.shape)
