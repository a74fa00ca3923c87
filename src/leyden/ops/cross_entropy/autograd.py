"""How the losses of tokens are differentiated: two autograd functions, which every fast body of the op shares.

A *body* forms the logits of a few rows at a time, takes what it needs from them and overwrites them, so that they
never exist whole. If it is told the gradient that its results will get (:class:`Upstream`), it turns each chunk of
logits into the gradient of the logits while it has them, and returns the gradients of hidden states and weight as well.

- :class:`TokenNll` gives the losses of single tokens. What their gradients will be is known in the backward alone, so
  its forward is a pass without gradients and its backward a second pass: 4 matrix products.
- :class:`SummedNll` gives one weighted sum of them. Its gradient is known up to a scalar before the logits are formed,
  so one pass in the forward is enough: 3 matrix products. Training uses this one.
"""

from typing import Any, NamedTuple, Protocol

import torch

from leyden.ops.native import in_reach


class Upstream(NamedTuple):
    """The gradient of a loss in the results of a body, as far as it is known before the logits are.

    It is that of ``sum_n dnll[n] (nll[n] + z_loss log_z[n]^2) + dlog_z[n] log_z[n]``.

    Attributes:
        dnll: [N] in the dtype of the losses. None means ones.
        dlog_z: [N] in the dtype of the losses. None means zeros.
        z_loss: as above.
    """

    dnll: torch.Tensor | None = None
    dlog_z: torch.Tensor | None = None
    z_loss: float = 0.0

    def factors(self, rows: slice, log_z: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of the logits of some rows is ``p * of_p - onehot(label) * of_label``; these are the factors.

        Args:
            rows: which of the N rows.
            log_z: [R], of these rows.
            valid: [R] bool, whether a row has a label.

        Returns:
            ``of_p`` and ``of_label``, [R] each, zero without a label.
        """
        # d nll / d logits = p - onehot;  d log_z / d logits = p;  d log_z^2 / d logits = 2 log_z p
        of_label = valid.to(log_z.dtype) if self.dnll is None else self.dnll[rows] * valid
        of_p = of_label
        if self.z_loss:
            of_p = of_p * (1 + 2 * self.z_loss * log_z)
        if self.dlog_z is not None:
            of_p = of_p + self.dlog_z[rows] * valid
        return of_p, of_label


class TokenLosses(NamedTuple):
    """What one pass over the logits of N rows gives.

    Attributes:
        nll: [N] in float32 (float64 for float64), the negative log-likelihood of each label; 0 without a label.
        log_z: [N] in the same dtype, the logsumexp of each row's logits; 0 without a label.
        dhidden: the gradient of the hidden states in their dtype; None unless the upstream gradient was given.
        dweight: the gradient of the weight in its dtype; None likewise.
    """

    nll: torch.Tensor
    log_z: torch.Tensor
    dhidden: torch.Tensor | None = None
    dweight: torch.Tensor | None = None


class Body(Protocol):
    """A way to compute :class:`TokenLosses`; arguments as of :func:`leyden.ops.linear_token_nll`."""

    def __call__(
        self, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, upstream: Upstream | None, /
    ) -> TokenLosses: ...


class TokenNll(torch.autograd.Function):
    """``nll`` and ``log_z`` of each token by a body: ``TokenNll.apply(body, hidden, weight, labels)``."""

    @staticmethod
    def forward(
        ctx: Any, body: Body, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses = body(hidden, weight, labels, None)
        ctx.body = body
        ctx.save_for_backward(hidden, weight, labels)
        return losses.nll, losses.log_z

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        losses = ctx.body(*ctx.saved_tensors, Upstream(grads[0], grads[1]))
        return None, losses.dhidden, losses.dweight, None


class SummedNll(torch.autograd.Function):
    """:func:`sum_of_losses` by a body, whose gradients are formed in the forward if ``differentiate`` is set."""

    @staticmethod
    def forward(
        ctx: Any,
        body: Body,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor | None,
        z_loss: float,
        differentiate: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses = body(hidden, weight, labels, Upstream(weights, None, z_loss) if differentiate else None)
        if losses.dhidden is not None and losses.dweight is not None:
            ctx.save_for_backward(losses.dhidden, losses.dweight)
        loss, nll = sum_of_losses(losses.nll, losses.log_z, weights, z_loss)
        ctx.mark_non_differentiable(nll)
        ctx.set_materialize_grads(False)  # or zeros would be made for the second result
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        scale, saved = grads[0], ctx.saved_tensors
        if scale is None:
            return (None,) * 7
        # Where it can be looked at without waiting, it is found to be 1 as a rule, and a pass over both is saved.
        known = not torch.compiler.is_compiling() and in_reach(scale)
        if not (known and scale == 1):
            saved = (x * scale.to(x.dtype) for x in saved)
        return None, *saved, None, None, None, None


def constant_weights(weights: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor | None:
    """The weights [N] of the rows of ``hidden`` in the dtype of their losses.

    Raises:
        ValueError: they are not N floating numbers on the device of ``hidden``, or want a gradient.
    """
    if weights is None:
        return None
    if weights.shape != hidden.shape[:1] or not weights.is_floating_point() or weights.device != hidden.device:
        raise ValueError(
            f"linear_cross_entropy: weights [N] expected, floating numbers for hidden {tuple(hidden.shape)} on "
            f"{hidden.device}; given {tuple(weights.shape)} of {weights.dtype} on {weights.device}."
        )
    if weights.requires_grad:
        raise ValueError(
            "linear_cross_entropy: weights are constants, and these want a gradient; detach them, or weigh the losses "
            "of linear_token_nll, which passes the gradient on."
        )
    return weights.to(torch.promote_types(hidden.dtype, torch.float32))


def sum_of_losses(
    nll: torch.Tensor, log_z: torch.Tensor, weights: torch.Tensor | None, z_loss: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``sum_n weights[n] (nll[n] + z_loss log_z[n]^2)``, and the same without the z-loss and without a gradient."""
    squares = log_z.square()
    if weights is not None:
        nll, squares = nll * weights, squares * weights
    total = nll.sum()
    return total + z_loss * squares.sum(), total.detach()
