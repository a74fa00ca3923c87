"""Activation checkpointing and compilation, a layer at a time, under which no parameter changes its name.

Recomputation is that of arXiv 1604.06174 (``full``), or of arXiv 2205.05198, section 5 (``selective``): what is dear to
compute or to exchange is kept, what lies between is computed again.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from leyden.model import MIXERS, experts
from leyden.model.lm import DecoderLayer

_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}

_ALWAYS_KEPT = {
    "leyden::lightning_attention",
    "leyden::swiglu_experts",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
    "_c10d_functional::reduce_scatter_tensor",
    "_c10d_functional::all_to_all_single",
}
"""Not gathers: what they make is as many times larger than what they take as there are ranks."""

_SEAMS = {
    **{mixer.seam: mixer.alone for mixer in MIXERS.values()},
    "compute": experts.compute,
    "drop": experts.drop,
}
"""The places that parallel axes fill, and what one process has there."""


def install_recompute(model: nn.Module, mode: Literal["none", "selective", "full"]) -> None:
    """Keep less of every layer of ``model`` between its forward and its backward.

    Args:
        model: with :class:`leyden.model.lm.DecoderLayer` inside.
        mode: ``full`` keeps a layer's input, and computes the layer again when its backward begins, exchanges between
            ranks included, in the order of the forward. ``selective`` also keeps the results of its projections, of
            attention and experts in Triton, and of tensor ranks' reductions. ``none`` does nothing.

    The bits of the loss and of its gradients do not change. Autograd functions are computed again as a whole, since
    their insides must not be touched: those with which context and expert ranks exchange what they have, and on a CPU
    attention and experts as such, where ``selective`` keeps projections and reductions alone.
    """
    if mode == "none":
        return
    contexts: dict[str, Any] = {}
    if mode == "selective":
        contexts["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for layer in _layers(model):
        layer.forward = _recomputed(layer.forward, contexts)


def install_compile(model: nn.Module, device: torch.device) -> None:
    """Compile every layer of ``model`` when it first runs. Call this before :func:`install_recompute`.

    On a GPU a layer in Triton is one graph, around ops that are opaque to the compiler (docs/kernels.md), or with
    experts, for which FSDP gathers weights, one before and one behind them. What exchanges tokens or states with other
    ranks is computed between graphs, but for tensor ranks' collectives, which are part of them. On a CPU attention is
    between graphs too: it is C++, or a loop over documents. The other ops then run in PyTorch instead of C++, for the
    compiler to fuse, so that results differ by rounding.

    A layer of one graph may be recomputed as its mode says. Of a layer of several, each keeps nothing for the backward,
    whatever the mode, since recomputation goes around them: it cannot be broken itself.

    Args:
        model: with :class:`leyden.model.lm.DecoderLayer` inside.
        device: on which it will run.
    """
    for layer in _layers(model):
        outside = [_keep_outside(module, device) for module in layer.modules()]
        if any(outside):
            layer.forward = torch.compile(layer.forward)
        else:
            layer.compile()


def _layers(model: nn.Module) -> list[DecoderLayer]:
    return [module for module in model.modules() if isinstance(module, DecoderLayer)]


def _recomputed(forward: Callable[..., Any], contexts: dict[str, Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        # The layers draw no random numbers, so there is no state of theirs to bring back.
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **contexts)

    return run


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Whether the result of ``op`` is kept.

    Products inside of autograd functions are not, which gradients being off tells: there they may be overwritten in
    place by C++ that PyTorch does not see, and what would be kept is not what the product was.
    """
    name = op._schema.name
    product = name in _PRODUCTS and op._overloadname == "default" and torch.is_grad_enabled()
    return CheckpointPolicy.MUST_SAVE if product or name in _ALWAYS_KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def _keep_outside(module: nn.Module, device: torch.device) -> bool:
    """Call the seams of a module between graphs that cannot be part of one; whether anything breaks a graph there.

    They are those that other ranks fill, and on a CPU all of them. Experts break it in any case, since FSDP gathers
    their weights by themselves.
    """
    found = isinstance(module, experts.MixtureOfExperts)
    for name, own in _SEAMS.items():
        seam = getattr(module, name, None)
        if seam is None or (seam is own and device.type != "cpu"):
            continue
        if isinstance(module, experts.MixtureOfExperts) and module.config.capacity_factor is None:
            continue  # nothing is dropped
        setattr(module, name, torch.compiler.disable(seam))
        found = True
    return found
