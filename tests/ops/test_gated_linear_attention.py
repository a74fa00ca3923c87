"""Gated linear attention against its token-by-token recurrence in float64, and against itself cut in every way."""

import itertools

import pytest
import torch
from exactness import DTYPES, assert_within_noise, examples, random, with_gradients
from hypothesis import given
from hypothesis import strategies as st

from leyden.ops import (
    gated_linear_attention,
    gated_linear_attention_decode,
    gated_linear_attention_prefill,
    gated_linear_attention_step,
    lightning_attention,
    native,
)

H = 3
HAS_NATIVE = not isinstance(native.load(), native.UnavailableError)
NATIVE = pytest.mark.skipif(not HAS_NATIVE, reason="no C++ compiler here")
BODIES = [
    *(pytest.param("torch", dtype, (6, 10), id=f"torch {dtype}") for dtype in DTYPES),
    *(
        pytest.param("native", dtype, widths, id=f"native {dtype} {widths}", marks=NATIVE)
        for dtype in native.DTYPES
        for widths in ((16, 64), (80, 16))
    ),
]
EVERY_BODY = pytest.mark.parametrize(("backend", "dtype", "widths"), BODIES)


def draw(
    bounds: list[int], dtype: torch.dtype, widths: tuple[int, int], batch: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v, decays and a state a row, or a document. The first head forgets slowly, the last at once or never."""
    (K, V), T, rows = widths, bounds[-1], batch if len(bounds) == 2 else len(bounds) - 1
    wide = torch.promote_types(dtype, torch.float32)
    q, k, v = (random(batch, T, H, D, dtype=dtype, seed=seed) for seed, D in ((1, K), (2, K), (3, V)))
    decay = -torch.exp(random(batch, T, H, K, seed=4) * torch.tensor([1.0, 3.0, 6.0])[:, None])
    decay[:, :, 0] *= 1e-3
    decay[:, :, 2].masked_fill_(decay[:, :, 2] < -50, -torch.inf).masked_fill_(decay[:, :, 2] > -0.01, 0)
    return q, k, v, decay.to(wide), random(rows, H, K, V, dtype=wide, seed=5)


def check(
    bounds: list[int],
    backend: str,
    dtype: torch.dtype,
    widths: tuple[int, int],
    *,
    batch: int = 1,
    resumed: bool = True,
    state_gradient: bool = True,
) -> None:
    """Output, final state and all gradients under the precision rule, head by head."""
    cu_seqlens = None if len(bounds) == 2 else torch.tensor(bounds, dtype=torch.int32)
    *tokens, state = draw(bounds, dtype, widths, batch)
    inputs = [*tokens, state] if resumed else tokens

    def body(backend: str):
        return lambda *x: gated_linear_attention(*x[:4], x[4] if resumed else None, cu_seqlens, backend)

    mute = () if state_gradient else (1,)
    results = (
        with_gradients(body(backend), inputs, mute=mute),
        with_gradients(body("reference"), inputs, mute=mute),
        with_gradients(body("reference"), [x.double() for x in inputs], mute=mute),
    )
    names = ("output", "final state", "dq", "dk", "dv", "dlog_decay", "dstate")
    for name, a, p, e in zip(names, *results, strict=False):
        assert_within_noise(a, p, e, dim=1 if "state" in name else 2, what=name)
    wide = torch.promote_types(dtype, torch.float32)
    assert (results[0][0].dtype, results[0][1].dtype, results[0][5].dtype) == (dtype, wide, wide)


@EVERY_BODY
@given(num_tokens=st.integers(8, 150), batch=st.integers(1, 2), resumed=st.booleans(), state_gradient=st.booleans())
@examples(4)
def test_rows_equal_the_recurrence(
    backend: str,
    dtype: torch.dtype,
    widths: tuple[int, int],
    num_tokens: int,
    batch: int,
    resumed: bool,
    state_gradient: bool,
) -> None:
    bounds = [0, num_tokens]
    check(bounds, backend, dtype, widths, batch=batch, resumed=resumed, state_gradient=state_gradient)


@pytest.mark.parametrize("num_tokens", [1, 2, 31, 32, 33, 63, 64, 65, 128, 129])
def test_rows_of_lengths_around_a_chunk(num_tokens: int) -> None:
    check([0, num_tokens], "torch", torch.float64, (6, 10))
    if HAS_NATIVE:
        check([0, num_tokens], "native", torch.float32, (16, 48))


@EVERY_BODY
@given(
    lengths=st.lists(st.sampled_from([0, 1, 1, 2, 17, 63, 64, 65]), min_size=2, max_size=5).filter(any),
    resumed=st.booleans(),
    state_gradient=st.booleans(),
)
@examples(3)
def test_packed_documents_equal_the_recurrence(
    backend: str, dtype: torch.dtype, widths: tuple[int, int], lengths: list[int], resumed: bool, state_gradient: bool
) -> None:
    bounds = [0, *itertools.accumulate(lengths)]
    check(bounds, backend, dtype, widths, resumed=resumed, state_gradient=state_gradient)


@pytest.mark.parametrize("bounds", [[0, 11], [0, 3, 3, 7, 11]])
@pytest.mark.parametrize("per_head", [False, True])
def test_gradients_by_finite_differences(bounds: list[int], per_head: bool) -> None:
    cu_seqlens = None if len(bounds) == 2 else torch.tensor(bounds)
    sizes = [(1, 11, 2, 3), (1, 11, 2, 3), (1, 11, 2, 2), (1, 11, 2, 1 if per_head else 3), (len(bounds) - 1, 2, 3, 2)]
    inputs = [random(*size, seed=seed) for seed, size in enumerate(sizes)]
    inputs[3] = -inputs[3].square()
    leaves = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: gated_linear_attention(*x, cu_seqlens), leaves, fast_mode=True)


@pytest.mark.parametrize("backend", ["reference", "torch", pytest.param("native", marks=NATIVE)])
def test_decays_that_no_token_changes_are_lightning_attention(backend: str) -> None:
    slopes = torch.tensor([0.0, 0.004, 0.9])
    q, k, v, _, state = draw([0, 130], torch.float32, (16, 16))
    out, end = gated_linear_attention(q, k, v, -slopes.expand(1, 130, H)[..., None], state, backend=backend)
    expected = lightning_attention(q, k, v, slopes, state, backend="reference")
    for found, wanted in zip((out, end), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-4)


@EVERY_BODY
def test_what_a_token_forgets_is_gone(backend: str, dtype: torch.dtype, widths: tuple[int, int]) -> None:
    """Behind a token that forgets all, a sequence is the one that begins with it, however large the past was."""
    q, k, v, decay, state = draw([0, 100], dtype, widths)
    decay = decay.clamp(min=-1)
    decay[:, 40] = -torch.inf
    k[:, :40] *= 1e4
    out, end = gated_linear_attention(q, k, v, decay, 1e6 * state, backend=backend)
    fresh, fresh_end = gated_linear_attention(q[:, 40:], k[:, 40:], v[:, 40:], decay[:, 40:], backend=backend)
    unit = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(out[:, 40:], fresh, rtol=unit, atol=unit * float(fresh.abs().max()))
    torch.testing.assert_close(end, fresh_end, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=NATIVE)])
def test_slow_decays_are_not_rounded(backend: str) -> None:
    """exp of this one would be rounded by 0.7 % of what a token forgets, at every token alike."""
    tokens, decay = 4096, -3e-6
    q, k, v = (torch.zeros(1, tokens, 1, 16) for _ in range(3))
    slow, state = torch.full((1, tokens, 1, 16), decay), torch.ones(1, 1, 16, 16)
    for _ in range(3):
        _, state = gated_linear_attention(q, k, v, slow, state, backend=backend)
    forgotten = 1 - torch.exp(torch.tensor(3.0 * tokens * decay, dtype=torch.float64))
    torch.testing.assert_close(1 - state.double(), forgotten.expand_as(state), rtol=1e-3, atol=0)


def test_decays_late_by_one_token_are_caught() -> None:
    """The current token decayed too, or what came before decayed by the next token in place of this one."""
    q, k, v, decay, state = draw([0, 100], torch.float32, (6, 10))
    exact, _ = gated_linear_attention(*(x.double() for x in (q, k, v, decay, state)), backend="reference")
    right, _ = gated_linear_attention(q, k, v, decay, state, backend="reference")
    wrong, _ = gated_linear_attention(q, k, v, decay.roll(-1, 1), state)
    with pytest.raises(AssertionError, match="error"):
        assert_within_noise(wrong, right, exact, dim=2)
    assert_within_noise(gated_linear_attention(q, k, v, decay, state)[0], right, exact, dim=2)


@EVERY_BODY
@given(cuts=st.lists(st.integers(0, 140), max_size=4))
@examples(3)
def test_a_prefill_in_parts_resumes_where_it_stopped(
    backend: str, dtype: torch.dtype, widths: tuple[int, int], cuts: list[int]
) -> None:
    *tokens, first = draw([0, 140], dtype, widths)
    state, outputs = first, []
    for start, end in itertools.pairwise([0, *sorted(cuts), 140]):
        out, state = gated_linear_attention(*(x[:, start:end] for x in tokens), state, backend=backend)
        outputs.append(out)
    whole, whole_end = gated_linear_attention(*tokens, first, backend=backend)
    if backend == "native":
        assert torch.equal(torch.cat(outputs, 1), whole) and torch.equal(state, whole_end)
        return
    exact = gated_linear_attention(*(x.double() for x in (*tokens, first)), backend="reference")
    plain = gated_linear_attention(*tokens, first, backend="reference")
    assert_within_noise(torch.cat(outputs, 1), plain[0], exact[0], dim=2)
    assert_within_noise(state, plain[1], exact[1], dim=1)


@EVERY_BODY
def test_steps_equal_a_prefill(backend: str, dtype: torch.dtype, widths: tuple[int, int]) -> None:
    *tokens, first = draw([0, 90], dtype, widths, batch=2)
    exact = gated_linear_attention(*(x.double() for x in (*tokens, first)), backend="reference")
    plain = gated_linear_attention(*tokens, first, backend="reference")
    out, state = gated_linear_attention(*(x[:, :50] for x in tokens), first, backend=backend)
    outputs = [out]
    for t in range(50, 90):
        before = state.clone()
        out, new = gated_linear_attention_step(*(x[:, t] for x in tokens), state)
        assert torch.equal(state, before)
        outputs, state = [*outputs, out[:, None]], new
    assert_within_noise(torch.cat(outputs, 1), plain[0], exact[0], dim=2)
    assert_within_noise(state, plain[1], exact[1], dim=1)
    if backend == "native":
        whole, end = gated_linear_attention(*tokens, first)
        assert torch.equal(torch.cat(outputs, 1), whole) and torch.equal(state, end)


@pytest.mark.parametrize("backend", ["reference", "torch", pytest.param("native", marks=NATIVE)])
def test_pools(backend: str) -> None:
    """A ragged prefill and a step in slots are those of the sequences alone; other slots stay as they are."""
    bounds, slots = [0, 5, 5, 70], torch.tensor([4, 0, 2])
    *tokens, states = draw(bounds, torch.float32, (16, 32))
    pool = random(6, H, 16, 32, dtype=torch.float32, seed=9)
    pool[slots] = states
    before = pool.clone()
    cu_seqlens = torch.tensor(bounds)
    out = gated_linear_attention_prefill(*tokens, pool, slots, cu_seqlens, backend=backend)
    expected, ends = gated_linear_attention(*tokens, states, cu_seqlens, backend="reference")
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pool[slots], ends, rtol=1e-4, atol=1e-4)
    untouched = [1, 3, 5]
    assert torch.equal(pool[untouched], before[untouched])
    rows, somebody = [x[0, :3] for x in tokens], torch.tensor([2, -1, 5])
    held = pool.clone()
    out = gated_linear_attention_decode(*rows, pool, somebody)
    expected, new = gated_linear_attention_step(*(x[::2] for x in rows), held[[2, 5]])
    assert torch.equal(out[::2], expected) and torch.equal(pool[[2, 5]], new) and not out[1].any()
    assert torch.equal(pool[[0, 1, 3, 4]], held[[0, 1, 3, 4]])


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=NATIVE)])
def test_no_document_sees_another(backend: str) -> None:
    bounds = [0, 40, 100, 170]
    *tokens, _ = draw(bounds, torch.bfloat16, (16, 16))
    out, states = gated_linear_attention(*tokens, None, torch.tensor(bounds), backend)
    tokens[1][:, 40:100], tokens[2][:, 40:100], tokens[3][:, 41] = 7.0, torch.nan, -torch.inf
    other, other_states = gated_linear_attention(*tokens, None, torch.tensor(bounds), backend)
    for start, end in ((0, 40), (100, 170)):
        assert torch.equal(out[:, start:end], other[:, start:end])
    assert torch.equal(states[[0, 2]], other_states[[0, 2]])
    assert other[:, 40:100].isnan().all()


@EVERY_BODY
def test_views_of_one_projection_equal_copies(backend: str, dtype: torch.dtype, widths: tuple[int, int]) -> None:
    K = widths[0]
    qkv, decay = random(2, 70, H, 3 * K, dtype=dtype), draw([0, 70], dtype, (K, K), batch=2)[3]

    def of(views: bool):
        def op(qkv: torch.Tensor):
            parts = qkv.split(K, dim=-1)
            parts = parts if views else [x.contiguous() for x in parts]
            return gated_linear_attention(*parts, decay, backend="torch" if K == 6 else "auto")

        return op

    for a, b in zip(with_gradients(of(True), [qkv]), with_gradients(of(False), [qkv]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["torch", "reference", pytest.param("native", marks=NATIVE)])
def test_no_tokens_leave_the_state_as_it_was(backend: str) -> None:
    *tokens, state = draw([0, 0], torch.float32, (16, 16), batch=2)
    out, end = gated_linear_attention(*tokens, state.requires_grad_(), backend=backend)
    assert out.shape == (2, 0, H, 16)
    assert torch.equal(end, state)
    (gradient,) = torch.autograd.grad(end.sum(), state)
    assert torch.equal(gradient, torch.ones_like(state))


@NATIVE
def test_the_native_backward_keeps_its_inputs_alone() -> None:
    *tokens, _ = draw([0, 500], torch.float32, (16, 16))
    leaves, kept = [x.requires_grad_() for x in tokens], {}

    def note(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        gated_linear_attention(*leaves)
    assert sum(kept.values()) < 1.01 * sum(x.untyped_storage().nbytes() for x in leaves)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(1, 5, H, 7)}, "q, k"),
        ({"v": torch.zeros(1, 5, H)}, "q, k"),
        ({"v": torch.zeros(1, 5, H, 10, dtype=torch.bfloat16)}, "one dtype"),
        ({"log_decay": torch.zeros(1, 5, H)}, "log_decay"),
        ({"log_decay": torch.zeros(1, 5, H, 2)}, "one decay a head"),
        ({"log_decay": torch.zeros(1, 5, H, 6, dtype=torch.bfloat16)}, "compute them wide"),
        ({"initial_state": torch.zeros(1, H, 10, 6)}, "initial_state"),
        ({"initial_state": torch.zeros(1, H, 6, 10), "cu_seqlens": torch.tensor([0, 2, 5])}, "initial_state"),
        ({"cu_seqlens": torch.tensor([0, 4])}, "cu_seqlens"),
        ({"backend": "cuda"}, "unknown"),
        (
            {name: torch.zeros(1, 5, H, n).double() for name, n in (("q", 6), ("k", 6), ("v", 10))}
            | {"backend": "triton"},
            "needs bfloat16, float16 or float32",
        ),
        pytest.param({"backend": "native"}, "dims that 16 divides; given 6 and 10", marks=NATIVE),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    good = dict(zip(("q", "k", "v", "log_decay"), draw([0, 5], torch.float32, (6, 10)), strict=False))
    gated_linear_attention(**good)
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(**{**good, **change})


def test_packed_documents_in_more_than_one_row_are_refused() -> None:
    *tokens, _ = draw([0, 5], torch.float32, (6, 10), batch=2)
    with pytest.raises(ValueError, match="one row"):
        gated_linear_attention(*tokens, cu_seqlens=torch.tensor([0, 5]))
