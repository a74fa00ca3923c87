"""Cross-entropy fused with the output projection, so that the logits never exist whole."""

import torch

from leyden.ops.backend import choose
from leyden.ops.checks import check_floating, check_indices
from leyden.ops.cross_entropy.native import NativeLinearCrossEntropy
from leyden.ops.cross_entropy.portable import LinearCrossEntropy
from leyden.ops.cross_entropy.reference import linear_cross_entropy_reference
from leyden.ops.gradients import backward_may_follow

__all__ = ["IGNORE_INDEX", "linear_cross_entropy"]

IGNORE_INDEX = -100
"""The label of a position that carries no loss."""


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, z_loss: float = 0.0, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross-entropy of ``softmax(hidden weight^T)``, with a z-loss, and without.

    Sums, not means: the caller divides once by the global count of valid labels.

    Args:
        hidden: [N, D].
        weight: [V, D], dtype of hidden.
        labels: [N] int64, from 0 to V - 1, or :data:`IGNORE_INDEX`.
        z_loss: coefficient of ``logsumexp(logits)^2`` (PaLM, arXiv 2204.02311, section 5).
        backend: ``"auto"``, ``"reference"``, ``"torch"``, ``"native"`` or ``"triton"``.

    Returns:
        ``sum_n -log p(labels[n]) + z_loss * logsumexp(logits[n])^2``, which is differentiable in hidden and weight,
        and ``sum_n -log p(labels[n])`` in nats, which is not; scalars in float32 (float64 for float64).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, a label outside of the vocabulary (on a GPU it
            is not looked for), or a backend that cannot run.
    """
    shapes = f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, labels {tuple(labels.shape)}"
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1:] != weight.shape[1:] or labels.shape != hidden.shape[:1]:
        raise ValueError(f"linear_cross_entropy: hidden [N, D], weight [V, D] and labels [N] expected; given {shapes}.")
    check_floating("linear_cross_entropy", hidden=hidden, weight=weight)
    check_indices("linear_cross_entropy", "labels", labels, len(weight), IGNORE_INDEX)
    labels = labels.long()
    chosen = choose("linear_cross_entropy", backend, hidden, weight, labels, triton=hidden.dtype, native=hidden.dtype)
    if chosen == "reference":
        return linear_cross_entropy_reference(hidden, weight, labels, z_loss)
    differentiate = backward_may_follow(hidden, weight)
    if chosen == "native":
        return NativeLinearCrossEntropy.apply(hidden, weight, labels, z_loss, differentiate)
    if chosen == "triton":
        from leyden.ops.cross_entropy.launch import linear_cross_entropy_triton  # triton, where it is used

        return linear_cross_entropy_triton(hidden, weight, labels, z_loss, differentiate)
    return LinearCrossEntropy.apply(hidden, weight, labels, z_loss, differentiate)
