"""Random calls of every public op, each held to its reference in float64: what no list of shapes thinks of.

A case is drawn from its seed alone: lengths from 0, one head, odd widths, views, huge and tiny values, gradients in
some of the inputs. ``check(op, seed)`` says in its message what to call to see one again. Numbers that are not finite
are cases too, which must end no process; that they stay in their document is the matter of ``test_isolation.py``, and
wrong dtypes, shapes and indices that of ``test_native_calls.py``.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from leyden.ops import (
    Int8Matrices,
    apply_rotary,
    gated_linear_attention,
    gated_rms_norm,
    int8_linear,
    lightning_attention,
    lightning_attention_prefill,
    linear_cross_entropy,
    linear_token_nll,
    paged_attention,
    paged_prompt_attention,
    quantize_rows,
    ranged_attention,
    residual_rms_norm,
    rms_norm,
    route,
    silu_split,
    softmax_attention,
    swiglu_experts,
)


@dataclass
class Draw:
    """What one case is made of.

    Attributes:
        generator: of all of it.
        dtype: of the floating inputs.
        scale: of their values.
        leaves: the inputs that are differentiated in.
    """

    generator: torch.Generator
    dtype: torch.dtype
    scale: float
    leaves: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, seed: int) -> "Draw":
        generator = torch.Generator().manual_seed(seed)
        draw = cls(generator, torch.float32, 1.0)
        draw.dtype = draw.one_of(torch.float32, torch.bfloat16)
        draw.scale = draw.one_of(1.0, 1.0, 1.0, 1e-6, 30.0)
        return draw

    def below(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self.generator))

    def one_of(self, *choices):
        return choices[self.below(len(choices))]

    def values(self, *shape: int, leaf: bool = True, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal numbers, perhaps in a view of something larger, perhaps to be differentiated in."""
        x = (torch.randn(shape, generator=self.generator) * self.scale).to(dtype or self.dtype)
        kind = self.below(4)
        if kind == 1 and shape:
            x = torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
        elif kind == 2 and len(shape) > 1:
            x = x.transpose(0, 1).contiguous().transpose(0, 1)
        if leaf and self.below(2):
            x = x.detach().requires_grad_()
            self.leaves.append(x)
        return x

    def integers(self, end: int, *shape: int) -> torch.Tensor:
        return torch.randint(max(end, 1), shape, generator=self.generator)

    def bounds(self, num_tokens: int) -> torch.Tensor:
        cuts = [self.below(num_tokens + 1) for _ in range(self.below(4))]
        return torch.tensor(sorted([0, num_tokens, *cuts]))


Call = Callable[[str], object]
"""Runs a case by a backend."""


def _norm(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    shape = (draw.below(5), draw.one_of(1, 2, 3, 15, 16, 17, 48, 100))
    learns = shape[-1] > 2  # the gradient of a norm of one number is zero, and all that one sees is rounding
    x, weight = draw.values(*shape, leaf=learns), draw.values(shape[-1], dtype=torch.float32)
    kind = draw.below(3)
    if kind == 0:
        return [x, weight], lambda x, w, backend: rms_norm(x, w, 1e-5, backend)
    y = draw.values(*shape, leaf=learns)
    if kind == 1:
        return [x, y, weight], lambda x, y, w, backend: gated_rms_norm(x, y, w, 1e-5, backend)
    return [x, y, weight], lambda x, y, w, backend: residual_rms_norm(x, y, w, 2.0, 0.5, 1e-5, backend)


def _silu(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    qkv = draw.values(1 + draw.below(2), draw.below(4), 1 + draw.below(3), 3 * draw.one_of(1, 5, 16, 21))
    return [qkv], lambda x, backend: silu_split(x, backend)


def _rotary(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    T, D = draw.below(5), draw.one_of(2, 7, 16, 33)
    half = draw.below(D // 2 + 1)
    angles = torch.rand(T, half, generator=draw.generator)
    cos, sin = angles.cos(), angles.sin()
    scale = draw.one_of(1.0, 0.75, 1.25)
    x = draw.values(1 + draw.below(2), T, 1 + draw.below(3), D)
    return [x], lambda x, backend: apply_rotary(x, cos.to(_wide(x)), sin.to(_wide(x)), backend, scale=scale)


def _route(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    E = draw.one_of(1, 2, 5, 16, 17)
    top_k, draw.scale = 1 + draw.below(E), 1.0  # of equals any may be chosen
    logits = draw.values(draw.below(6), E, dtype=torch.float32)

    def run(logits: torch.Tensor, backend: str) -> list[torch.Tensor]:
        routing = route(logits, top_k, backend)
        return [routing.weights, routing.probabilities]

    return [logits], run


def _entropy(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    N, D, V = draw.below(6), draw.one_of(1, 5, 16), draw.one_of(1, 3, 17, 40)
    labels = torch.where(torch.rand(N, generator=draw.generator) < 0.2, -100, draw.integers(V, N))
    z_loss = draw.one_of(0.0, 1e-3)
    inputs = [draw.values(N, D), draw.values(V, D)]
    return inputs, lambda h, w, backend: linear_cross_entropy(h, w, labels, z_loss, backend)


def _token_nll(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    N, D, V = draw.below(6), draw.one_of(1, 5, 16), draw.one_of(1, 3, 17, 40)
    labels = torch.where(torch.rand(N, generator=draw.generator) < 0.2, -100, draw.integers(V, N))
    inputs = [draw.values(N, D), draw.values(V, D)]
    return inputs, lambda h, w, backend: linear_token_nll(h, w, labels, backend)


def _experts(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    N, E, D, F = draw.below(7), 1 + draw.below(4), draw.one_of(1, 7, 16, 32), draw.one_of(1, 5, 16)
    top_k = 1 + draw.below(E)
    experts = torch.rand(N, E, generator=draw.generator).argsort(-1)[:, :top_k]
    kept = torch.rand(N, top_k, generator=draw.generator) < 0.7 if draw.below(2) else None
    inputs = [draw.values(N, D), draw.values(E, 2 * F, D), draw.values(E, D, F)]
    weights = draw.values(N, top_k, dtype=torch.float32)
    return [*inputs, weights], lambda x, a, b, w, backend: swiglu_experts(x, a, b, experts, w, kept, backend)


def _experts_in_8_bits(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    N, E, D, F = draw.below(7), 1 + draw.below(3), draw.one_of(7, 16), draw.one_of(5, 16)
    stacks = [quantize_rows(draw.values(*shape, leaf=False)) for shape in ((E, 2 * F, D), (E, D, F))]
    experts, weights = draw.integers(E, N, 1), torch.rand(N, 1, generator=draw.generator)

    def run(x: torch.Tensor, backend: str) -> torch.Tensor:
        gate_up, down = (Int8Matrices(weight, scale, x.dtype) for weight, scale in stacks)
        return swiglu_experts(x, gate_up, down, experts, weights.to(_wide(x)), None, backend)

    return [draw.values(N, D, leaf=False)], run


def _softmax(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    T, G, D = draw.below(20), 1 + draw.below(2), draw.one_of(1, 5, 16, 32)
    H, packed = G * (1 + draw.below(2)), bool(draw.below(2))
    B, S = (1, T) if packed else (1 + draw.below(2), T + draw.below(5))
    bounds, window = draw.bounds(T) if packed else None, draw.one_of(None, 1 + draw.below(8))
    inputs = [draw.values(B, T, H, D), draw.values(B, S, G, D), draw.values(B, S, G, D)]
    return inputs, lambda q, k, v, backend: softmax_attention(q, k, v, bounds, backend, window=window)


def _lightning(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    T, H, K, V = (
        draw.one_of(0, 1, 2, 63, 64, 65, 130),
        1 + draw.below(3),
        draw.one_of(1, 5, 16, 33),
        draw.one_of(16, 64),
    )
    packed = bool(draw.below(2))
    B = 1 if packed else 1 + draw.below(2)
    bounds = draw.bounds(T) if packed else None
    slopes = torch.rand(H, generator=draw.generator) * draw.one_of(1e-6, 0.1, 1.0, 100.0)
    inputs = [draw.values(B, T, H, width) for width in (K, K, V)]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        return lightning_attention(q, k, v, slopes.to(_wide(q)), None, bounds, backend)

    return inputs, run


def _gated(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    T, H = draw.one_of(0, 1, 2, 32, 33, 70), 1 + draw.below(3)
    K, V = draw.one_of(16, 48, 64), draw.one_of(16, 64)
    packed = bool(draw.below(2))
    B = 1 if packed else 1 + draw.below(2)
    bounds, steepness = draw.bounds(T) if packed else None, draw.one_of(1e-6, 0.1, 1.0, 100.0)
    decays = torch.rand(B, T, H, draw.one_of(1, K), generator=draw.generator) * -steepness
    if draw.below(2):
        draw.leaves.append(decays.requires_grad_())
    inputs = [*(draw.values(B, T, H, D) for D in (K, K, V)), decays]
    return inputs, lambda q, k, v, g, backend: gated_linear_attention(q, k, v, g, None, bounds, backend)


def _prefill(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    T, H, K, V = draw.one_of(1, 2, 65), 1 + draw.below(2), draw.one_of(3, 16), 16
    bounds = draw.bounds(T)
    slots = torch.randperm(len(bounds) + 1, generator=draw.generator)[: len(bounds) - 1]
    slopes, pool = torch.rand(H, generator=draw.generator), torch.randn(len(bounds) + 1, H, K, V)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        states = pool.clone()
        out = lightning_attention_prefill(q, k, v, slopes, states, slots, bounds, backend)
        return out, states

    inputs = [draw.values(1, T, H, width, leaf=False) for width in (K, K, V)]
    return inputs, run


def _int8(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    D, F = draw.one_of(1, 7, 16, 33), draw.one_of(1, 5, 40)
    weight, scale = quantize_rows(draw.values(F, D, leaf=False))
    x = draw.values(draw.below(5), D, leaf=False)
    return [x], lambda x, backend: int8_linear(x, weight, scale.to(_wide(x)), backend)


def _paged(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    B, G, D, pages, page = draw.below(4), 1 + draw.below(2), draw.one_of(3, 16), 1 + draw.below(4), draw.one_of(1, 4)
    width = 1 + draw.below(3)
    table, lengths = draw.integers(pages, B, width).int(), draw.integers(width * page + 1, B).int()
    keys = [draw.values(pages, page, G, D, leaf=False) for _ in range(2)]
    q = draw.values(B, G * (1 + draw.below(2)), D, leaf=False)
    return [q, *keys], lambda q, k, v, backend: paged_attention(q, k, v, table, lengths, backend)


def _prompt(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    T, G, D, page = draw.below(20), 1 + draw.below(2), draw.one_of(3, 16, 32, 48), draw.one_of(1, 4, 7, 16)
    length = T + draw.below(10)
    count = -(-length // page) + draw.below(3)
    table = torch.randperm(count + 2, generator=draw.generator)[:count].int()
    pages = [draw.values(count + 2, page, G, D, leaf=False) for _ in range(2)]
    q = draw.values(T, G * (1 + draw.below(3)), D, leaf=False)
    return [q, *pages], lambda q, k, v, backend: paged_prompt_attention(q, k, v, table, length, backend)


def _ranged(draw: Draw) -> tuple[list[torch.Tensor], Callable]:
    T, S, G, D = draw.below(9), 1 + draw.below(9), 1 + draw.below(2), draw.one_of(3, 16)
    first, last = (draw.integers(S + 1, T).sort().values.int() for _ in range(2))
    inputs = [draw.values(T, G, D, leaf=False), draw.values(S, G, D, leaf=False), draw.values(S, G, D, leaf=False)]
    return inputs, lambda q, k, v, backend: ranged_attention(q, k, v, first, last, backend)


OPS: dict[str, tuple[Callable[[Draw], tuple[list[torch.Tensor], Callable]], str]] = {
    "norms": (_norm, "native"),
    "silu_split": (_silu, "native"),
    "apply_rotary": (_rotary, "native"),
    "route": (_route, "native"),
    "linear_cross_entropy": (_entropy, "native"),
    "linear_token_nll": (_token_nll, "native"),
    "swiglu_experts": (_experts, "native"),
    "swiglu_experts in 8 bits": (_experts_in_8_bits, "native"),
    "softmax_attention": (_softmax, "auto"),
    "lightning_attention": (_lightning, "auto"),
    "lightning_attention_prefill": (_prefill, "native"),
    "gated_linear_attention": (_gated, "native"),
    "int8_linear": (_int8, "native"),
    "paged_attention": (_paged, "torch"),
    "paged_prompt_attention": (_prompt, "auto"),
    "ranged_attention": (_ranged, "torch"),
}
"""How a case of each is made, and the body that is tried beside PyTorch's."""


def check(op: str, seed: int) -> None:
    """One case: the body, and PyTorch's, against the reference in float64."""
    make, backend = OPS[op]
    draw = Draw.of(seed)
    inputs, run = make(draw)
    wants = [x.requires_grad for x in inputs]
    results = {}
    for name, dtype in (("body", None), ("torch", None), ("exact", torch.float64)):
        given = [x.detach().to(dtype or x.dtype).requires_grad_(want) for x, want in zip(inputs, wants, strict=True)]
        if name == "body":  # with the strides that were drawn
            given = [x.detach().requires_grad_(want) for x, want in zip(inputs, wants, strict=True)]
        used = {"body": backend, "torch": "torch", "exact": "reference"}[name]
        results[name] = _all(functools.partial(run, *given), used, given)
    for number, (mine, plain, exact) in enumerate(zip(*results.values(), strict=True)):
        # The gradients of float32 weights are computed of what was rounded to the dtype of the case.
        gradient = number >= len(results["exact"]) - sum(wants)
        unit = torch.finfo(draw.dtype if gradient else mine.dtype).eps
        _judge(mine, plain, exact, unit, f"check({op!r}, {seed}), result {number}")


def run_body(op: str, seed: int) -> list[torch.Tensor]:
    """The outputs and gradients of one case by the body alone."""
    make, backend = OPS[op]
    inputs, run = make(Draw.of(seed))
    return _all(functools.partial(run, *inputs), backend, inputs)


def try_what_is_not_finite(op: str, seed: int) -> None:
    """One case with NaN and infinity among its numbers: it ends, and where nothing of them comes it says the same."""
    make, backend = OPS[op]
    draw = Draw.of(seed)
    inputs, run = make(draw)
    for x in inputs:
        flat = x.detach().view(-1) if x.is_contiguous() else None
        if flat is not None and len(flat):
            flat[draw.below(len(flat))] = draw.one_of(torch.nan, torch.inf, -torch.inf, 3e38)
    _all(functools.partial(run, *inputs), backend, inputs)


def _all(run: Callable[..., object], backend: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The outputs, and the gradients where there are some."""
    results = run(backend)
    outputs = [results] if isinstance(results, torch.Tensor) else list(results)  # pyright: ignore[reportArgumentType]
    learned = [x for x in inputs if x.requires_grad]
    differentiable = [x for x in outputs if x.requires_grad]
    grads: list[torch.Tensor | None] = [None] * len(learned)  # where nothing depends on them
    if learned and differentiable:
        weights = [torch.linspace(-1, 1, x.numel()).view(x.shape).to(x.dtype) for x in differentiable]
        grads = list(torch.autograd.grad(differentiable, learned, weights, allow_unused=True))
    found = [torch.zeros_like(x) if grad is None else grad for x, grad in zip(learned, grads, strict=True)]
    return [x.detach() for x in (*outputs, *found)]


def _judge(mine: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, unit: float, what: str) -> None:
    assert mine.shape == plain.shape == exact.shape, what
    endless = exact.isinf()  # what a query sees that sees nothing
    assert torch.equal(mine[endless].double(), exact[endless].double()), what
    mine, plain, exact = (x[~endless] for x in (mine, plain, exact))
    if not exact.numel():
        return
    size = exact.abs().amax().item()
    noise = (plain.double() - exact).abs().amax().item()
    error = (mine.double() - exact).abs().amax().item()
    # A case has few numbers, so that the plain body's error may be small by luck: units of the dtype come on top.
    limit = 12 * noise + 16 * unit * size + 1e-30
    assert error <= limit, f"{what}: off by {error:.3g}, allowed {limit:.3g} of {size:.3g}"


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
