"""Losses of tokens fused with the output projection, so that the logits never exist whole.

:func:`linear_token_nll` gives the losses of single tokens, for objectives that weigh or combine them in a way that is
known only once they are (DPO, GRPO). :func:`linear_cross_entropy` gives their weighted sum for a quarter less
arithmetic, for objectives whose weights are known before (pre-training, SFT).
"""

import functools

import torch

from leyden.ops.backend import choose_capping
from leyden.ops.checks import check_floating, check_indices
from leyden.ops.cross_entropy import native, portable
from leyden.ops.cross_entropy.autograd import Body, SummedNll, TokenNll, constant_weights, sum_of_losses
from leyden.ops.cross_entropy.reference import linear_token_nll_reference
from leyden.ops.gradients import backward_may_follow

__all__ = ["IGNORE_INDEX", "linear_cross_entropy", "linear_token_nll"]

IGNORE_INDEX = -100
"""The label of a position that carries no loss."""


def linear_token_nll(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    backend: str = "auto",
    *,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The negative log-likelihood of each label under ``softmax(hidden weight^T)``, and the log of its denominator.

    Both are differentiable in hidden and weight. The backward forms the logits a second time, some rows at a time, so
    that neither direction ever holds them whole.

    Args:
        hidden: [N, D].
        weight: [V, D], dtype of hidden.
        labels: [N] int64, from 0 to V - 1, or :data:`IGNORE_INDEX`.
        backend: ``"auto"``, ``"reference"``, ``"torch"``, ``"native"`` or ``"triton"``.
        softcap: a logit x counts as ``softcap tanh(x / softcap)`` (Gemma 2, arXiv 2408.00118, section 2); above 0.
            C++ and Triton do not compute it, PyTorch does.

    Returns:
        ``nll`` [N], ``-log p(labels[n])`` in nats, and ``log_z`` [N], ``logsumexp(logits[n])``, in float32 (float64 for
        float64). Where the label is :data:`IGNORE_INDEX` both are 0 and have no gradient.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, a label outside of the vocabulary (on a GPU it
            is not looked for), or a backend that cannot run.
    """
    chosen = _choose("linear_token_nll", hidden, weight, labels, backend, softcap)
    if chosen == "reference":
        return linear_token_nll_reference(hidden, weight, labels.long(), softcap)
    return TokenNll.apply(_body(chosen, softcap), hidden, weight, labels.long())


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    z_loss: float = 0.0,
    backend: str = "auto",
    *,
    weights: torch.Tensor | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of the losses of all tokens, with a z-loss, and without.

    Sums, not means: the caller divides once by the global count of valid labels.

    Args:
        hidden, weight, labels, backend, softcap: as of :func:`linear_token_nll`.
        z_loss: coefficient of ``log_z^2`` (PaLM, arXiv 2204.02311, section 5).
        weights: [N], how much each token counts; constants, in which the result is not differentiable. None: 1 each.

    Returns:
        ``sum_n weights[n] (nll[n] + z_loss log_z[n]^2)``, which is differentiable in hidden and weight, and
        ``sum_n weights[n] nll[n]``, which is not; scalars in the dtype of ``nll``.

    Raises:
        ValueError: as of :func:`linear_token_nll`, or weights that are not [N] numbers or want a gradient.
    """
    chosen = _choose("linear_cross_entropy", hidden, weight, labels, backend, softcap)
    weights = constant_weights(weights, hidden)
    if chosen == "reference":
        return sum_of_losses(*linear_token_nll_reference(hidden, weight, labels.long(), softcap), weights, z_loss)
    differentiate = backward_may_follow(hidden, weight)
    return SummedNll.apply(_body(chosen, softcap), hidden, weight, labels.long(), weights, z_loss, differentiate)


def _choose(
    op: str,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    backend: str,
    softcap: float | None,
) -> str:
    """The body that will run, once the inputs are found to fit together."""
    shapes = f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, labels {tuple(labels.shape)}"
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1:] != weight.shape[1:] or labels.shape != hidden.shape[:1]:
        raise ValueError(f"{op}: hidden [N, D], weight [V, D] and labels [N] expected; given {shapes}.")
    check_floating(op, hidden=hidden, weight=weight)
    check_indices(op, "labels", labels, len(weight), IGNORE_INDEX)
    dtype = hidden.dtype
    return choose_capping(op, backend, softcap, hidden, weight, labels, triton=dtype, native=dtype)


def _body(chosen: str, softcap: float | None) -> Body:
    if chosen == "native":
        return native.token_nll
    if chosen == "triton":
        from leyden.ops.cross_entropy import launch  # triton, where it is used

        return launch.token_nll
    return portable.token_nll if softcap is None else functools.partial(portable.token_nll, softcap=softcap)
