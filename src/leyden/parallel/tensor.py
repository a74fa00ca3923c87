"""Tensor parallelism: ranks divide the heads, a dense feed-forward's width and the vocabulary (arXiv 1909.08053).

Between those divided parts every rank holds its own tokens alone (sequence parallelism, arXiv 2205.05198): norms,
residuals, routers and the shared expert work on [1, T / tp, D] and know nothing of other ranks. What is divided gathers
the tokens at its entrance and reduces and scatters its outputs at its exit, which together move the bytes of one
all-reduce. Experts are divided in a way of their own (:mod:`leyden.parallel.experts`).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from leyden.core.errors import UserError
from leyden.model import HybridLM, Mixer
from leyden.model.experts import DenseMLP, MixtureOfExperts
from leyden.model.float32 import Float32Module
from leyden.model.lm import DecoderLayer
from leyden.model.norm import GroupedRMSNorm
from leyden.parallel.collectives import arrived, begin_sum, gather, reduce_scatter
from leyden.parallel.mesh import Mesh
from leyden.parallel.vocabulary import VocabularyEmbedding, VocabularyProjection


def install_tensor(model: HybridLM, mesh: Mesh) -> None:
    """Let tensor ranks compute together what each has the weights of a part of.

    Args:
        model: its weights cut to this rank's parts (:func:`leyden.parallel.weights.part_of`); names stay as they are.
        mesh: of the ranks; nothing changes where there is one tensor rank.

    Raises:
        UserError: a layer of which it is not known how its heads or its width are divided.

    Afterwards ``model.features`` gives the normed hidden states of this rank's own tokens, ``model.token_nll`` their
    losses and ``model.cross_entropy`` their share of the row's. Logits are not to be had: no rank holds a whole row of
    them.
    """
    group = mesh.groups["tp"]
    if group is None:
        return
    for layer in [module for module in model.modules() if isinstance(module, DecoderLayer)]:
        for half in (layer.self_attn, layer.mlp):
            _install(half, group)
    first = model.config.vocab_size * group.rank() // group.size()
    model.set_submodule("embed_tokens", VocabularyEmbedding(model.embed_tokens.weight, first, group))
    head = model.lm_head
    divided = VocabularyProjection(head.weight, first, model.config.vocab_size, group, head.softcap)
    model.set_submodule("lm_head", divided)


def _install(half: nn.Module, group: dist.ProcessGroup) -> None:
    """Divide attention, or the feed-forward, of a layer. Experts work on each rank's own tokens."""
    if isinstance(half, MixtureOfExperts):
        return
    if isinstance(half, Mixer):
        half.take_heads(group.size())
        for name in half.head_norms:
            norm = half.get_submodule(name.removesuffix(".weight"))
            if isinstance(norm, GroupedRMSNorm):  # its groups are whole on one rank each
                continue
            half.set_submodule(name.removesuffix(".weight"), HeadsNorm(norm.weight, norm.eps, group))  # pyright: ignore[reportArgumentType]
    elif not isinstance(half, DenseMLP):
        raise UserError(
            f"tensor parallelism does not know how to divide {type(half).__name__}; train or serve this model with "
            "tp = 1, or say in leyden.parallel.tensor what its ranks divide."
        )
    _divide(half, group)


def _divide(module: nn.Module, group: dist.ProcessGroup) -> None:
    """All tokens of the group go into ``module``, own tokens of the sum over ranks come out."""

    def enter(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return gather(arguments[0], 1, group), *arguments[1:]

    def leave(_: nn.Module, arguments: tuple[Any, ...], out: Any) -> Any:
        if isinstance(out, tuple):  # of a mixer, whose state belongs to this rank's heads
            return reduce_scatter(out[0], 1, group), *out[1:]
        return reduce_scatter(out, 1, group)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


class HeadsNorm(Float32Module):
    """The norm over the heads of all tensor ranks, of which this rank has [..., D'] with D = tp D'."""

    def __init__(self, weight: torch.Tensor, eps: float, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight, self.eps, self._group = weight, eps, group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x / rms(x) * weight``, [..., D'], the mean square being over all D."""
        return _HeadsNorm.apply(x, None, self.weight, self.eps, self._group)

    def gated(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The same times ``sigmoid(gate)``, [..., D'] each."""
        return _HeadsNorm.apply(x, gate, self.weight, self.eps, self._group)


class _HeadsNorm(torch.autograd.Function):
    """As :func:`leyden.ops.gated_rms_norm`, with one sum a token over ranks in each direction.

    With n = x r, r = 1 / rms(x), s = sigmoid(gate), or 1 without a gate: ``y = n w s``,
    ``dx = r (dy w s - n mean(n dy w s))``, the mean being over all D. Sums travel while the gate is opened, or its
    gradient formed.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, gate: torch.Tensor | None, weight: torch.Tensor, eps: float, group: dist.ProcessGroup
    ) -> torch.Tensor:
        wide = _wide(x)
        squares = begin_sum(torch.linalg.vecdot(wide, wide), group)
        factor = weight.expand(x.shape).clone() if gate is None else torch.sigmoid(_wide(gate)).mul_(weight)
        rstd = arrived(squares).div_(x.shape[-1] * group.size()).add_(eps).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(x, gate, weight, rstd)
        ctx.group = group
        return factor.mul_(wide).mul_(rstd).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate, weight, rstd = ctx.saved_tensors
        normed, dy = x * rstd, _wide(grads[0])
        opened = torch.ones_like(dy) if gate is None else torch.sigmoid(_wide(gate))
        ungated = normed * dy
        product = ungated * opened
        mean = begin_sum(torch.matmul(product, weight), ctx.group)
        dgate = None
        if gate is not None:
            dgate = torch.ops.aten.sigmoid_backward(ungated.mul_(weight), opened).to(gate.dtype)
        dweight = product.flatten(0, -2).sum(0)
        dx = opened.mul_(dy).mul_(weight)
        mean = arrived(mean).div_(x.shape[-1] * ctx.group.size()).unsqueeze(-1)
        dx = dx.addcmul_(normed, mean, value=-1).mul_(rstd)
        return dx.to(x.dtype), dgate, dweight.to(weight.dtype), None, None


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
