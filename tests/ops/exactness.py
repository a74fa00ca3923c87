"""The precision rule that every op is held to, and the means to run one op in three ways.

An error against float64 may be at most twice that of a plain PyTorch computation of the same formula in the same
precision, plus one rounding unit of the output's dtype.
"""

from collections.abc import Callable, Sequence

import torch
from hypothesis import settings

HARDWARE = 2.0**-22
"""The largest relative error of a GPU's exponential in float32, by the manual of PTX; roots and quotients have less."""

Op = Callable[..., Sequence[torch.Tensor]]

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def examples(number: int) -> settings:
    """So many examples, the same in every run: what is judged by its rounding noise must not depend on luck."""
    return settings(max_examples=number, deadline=None, derandomize=True)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """Normal numbers that are the same for every dtype, up to its rounding."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_gradients(op: Op, inputs: Sequence[torch.Tensor], *, mute: Sequence[int] = ()) -> list[torch.Tensor]:
    """The outputs of the op, then its gradients in every input under the same random weighting of the outputs.

    Args:
        op: from the inputs to differentiable outputs.
        inputs: the tensors to differentiate in.
        mute: outputs that get no gradient at all.
    """
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = list(op(*leaves))
    heard = [i for i in range(len(outputs)) if i not in mute]
    weights = [random(*outputs[i].shape, dtype=torch.float64, seed=100 + i).to(outputs[i].dtype) for i in heard]
    gradients = torch.autograd.grad([outputs[i] for i in heard], leaves, weights)
    return [x.detach() for x in (*outputs, *gradients)]


def assert_within_noise(
    actual: torch.Tensor,
    plain: torch.Tensor,
    exact: torch.Tensor,
    *,
    dim: int | None = None,
    what: str = "",
    hardware: float = 0.0,
) -> None:
    """Hold one result to the rule.

    The error is the root-mean-square one, which does not hang on a single unlucky element; no element may be off by
    more than twelve times what is allowed to all (rounding noise reaches some seven), or three times the plain
    computation's largest error, where few elements carry most of the noise.

    Args:
        actual: the result to judge.
        plain: the same from plain PyTorch in the same precision.
        exact: the same in float64.
        dim: a dim whose slices (heads, say) are judged one by one, since their magnitudes differ.
        what: names the result in the message.
        hardware: an error that is allowed besides: what a GPU's approximate exponential, root or quotient is off by
            (:data:`HARDWARE`), times the size of what it is applied to. Few numbers, or some that cancel, have no noise
            of their own that would cover it.
    """
    assert actual.shape == plain.shape == exact.shape, what
    # float64 is judged against float64, which has rounding noise of its own.
    unit = torch.finfo(actual.dtype).eps * (1000 if actual.dtype == torch.float64 else 1)
    slices = zip(*(x.unbind(dim) if dim is not None else (x,) for x in (actual, plain, exact)), strict=True)
    for index, (a, p, e) in enumerate(slices):
        if e.numel() == 0:
            continue
        assert a.isfinite().all(), f"{what} [{index}]: not finite"
        error, noise = a.double() - e, p.double() - e
        limit = 2 * _root_mean_square(noise) + unit * _root_mean_square(e) + hardware
        typical, largest = _root_mean_square(error), error.abs().max().item()
        assert typical <= limit, f"{what} [{index}]: error {typical:.3g} above {limit:.3g}"
        allowed = max(12 * limit, 3 * noise.abs().max().item())
        assert largest <= allowed, f"{what} [{index}]: largest error {largest:.3g} above {allowed:.3g}"


def assert_all_within_noise(
    fast: Op, plain: Op, exact: Op, inputs: Sequence[torch.Tensor], *, mute: Sequence[int] = ()
) -> None:
    """Outputs and gradients of ``fast`` under the rule; ``exact`` gets the inputs in float64."""
    results = (
        with_gradients(fast, inputs, mute=mute),
        with_gradients(plain, inputs, mute=mute),
        with_gradients(exact, [x.double() for x in inputs], mute=mute),
    )
    for number, (a, p, e) in enumerate(zip(*results, strict=True)):
        assert_within_noise(a, p, e, what=f"result {number}")


def _root_mean_square(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()
