"""Lightning attention against its token-by-token recurrence in float64, and against itself cut in every way."""

import itertools

import pytest
import torch
from exactness import DTYPES, assert_within_noise, examples, random, with_gradients
from hypothesis import given
from hypothesis import strategies as st

from leyden.ops import lightning_attention, lightning_attention_step, native

H, K, V = 4, 6, 10
SLOPES = torch.tensor([0.0, 0.004, 0.9, 300.0])  # none, a deep layer's, the steepest released, far steeper


def plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor, bounds: list[int], late: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each document by the masked quadratic form in the dtype of the inputs: ``(q k^T * decay) v + decayed q S``.

    ``late`` shifts the decay of everything before the current token: 1 is the known defect, a history too large by
    ``exp(slope)``.
    """
    outputs, states = [], []
    for n, (start, end) in enumerate(itertools.pairwise(bounds)):
        queries, keys, values = (x[:, start:end].transpose(1, 2) for x in (q, k, v))
        rows = slice(None) if len(bounds) == 2 else slice(n, n + 1)
        T = end - start
        slope, position = SLOPES.double()[:, None, None], torch.arange(T, dtype=torch.float64)
        distance = (position[:, None] - position).clamp_min(0)
        within = torch.exp(-slope * (distance - late * (distance > 0))).tril().to(q.dtype)
        entry = torch.exp(-slope * (position[:, None] + 1 - late)).to(q.dtype)
        left = torch.exp(-slope * (T - 1 - position[:, None])).to(q.dtype)
        first = state[rows].to(q.dtype)
        outputs.append((queries @ keys.mT * within @ values + queries * entry @ first).transpose(1, 2))
        states.append((keys * left).mT @ values + torch.exp(-slope * T).to(q.dtype) * first)
    return torch.cat(outputs, 1), torch.cat(states)


def draw(
    bounds: list[int], dtype: torch.dtype, batch: int = 1, widths: tuple[int, int] = (K, V)
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v and a state a row, or a document."""
    T, rows = bounds[-1], batch if len(bounds) == 2 else len(bounds) - 1
    wide = torch.promote_types(dtype, torch.float32)
    return (
        random(batch, T, H, widths[0], dtype=dtype, seed=1),
        random(batch, T, H, widths[0], dtype=dtype, seed=2),
        random(batch, T, H, widths[1], dtype=dtype, seed=3),
        random(rows, H, *widths, dtype=wide, seed=4),
    )


def check(
    bounds: list[int],
    dtype: torch.dtype,
    *,
    batch: int = 1,
    resumed: bool,
    state_gradient: bool,
    backend: str = "auto",
    widths: tuple[int, int] = (K, V),
) -> None:
    """Output, final state and all gradients under the precision rule, head by head."""
    cu_seqlens = None if len(bounds) == 2 else torch.tensor(bounds, dtype=torch.int32)
    q, k, v, state = draw(bounds, dtype, batch, widths)
    inputs = [q, k, v, state] if resumed else [q, k, v]

    def fast(q, k, v, first=None):
        return lightning_attention(q, k, v, SLOPES, first, cu_seqlens, backend)

    def exact(q, k, v, first=None):
        return lightning_attention(q, k, v, SLOPES, first, cu_seqlens, backend="reference")

    def same_precision(q, k, v, first=None):
        return plain(q, k, v, torch.zeros_like(state) if first is None else first, bounds)

    mute = () if state_gradient else (1,)
    results = (
        with_gradients(fast, inputs, mute=mute),
        with_gradients(same_precision, inputs, mute=mute),
        with_gradients(exact, [x.double() for x in inputs], mute=mute),
    )
    names = ("output", "final state", "dq", "dk", "dv", "dstate")
    for name, a, p, e in zip(names, *results, strict=False):
        assert_within_noise(a, p, e, dim=1 if "state" in name else 2, what=name)
    assert results[0][0].dtype == dtype
    assert results[0][1].dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@given(num_tokens=st.integers(1, 150), batch=st.integers(1, 3), resumed=st.booleans(), state_gradient=st.booleans())
@examples(12)
def test_rows_equal_the_recurrence(
    dtype: torch.dtype, num_tokens: int, batch: int, resumed: bool, state_gradient: bool
) -> None:
    check([0, num_tokens], dtype, batch=batch, resumed=resumed, state_gradient=state_gradient)


@pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no native library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 17, 63, 64, 65, 150]), min_size=1, max_size=5).filter(any),
    widths=st.sampled_from([(16, 16), (32, 64), (48, 16), (64, 128)]),
    resumed=st.booleans(),
    state_gradient=st.booleans(),
)
@examples(15)
def test_the_native_body_equals_the_recurrence(
    dtype: torch.dtype, lengths: list[int], widths: tuple[int, int], resumed: bool, state_gradient: bool
) -> None:
    bounds = [0, *itertools.accumulate(lengths)]
    check(bounds, dtype, resumed=resumed, state_gradient=state_gradient, backend="native", widths=widths)


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 127, 128, 129])
def test_rows_of_lengths_around_a_chunk(num_tokens: int) -> None:
    check([0, num_tokens], torch.float64, resumed=True, state_gradient=True)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 1, 2, 17, 63, 64, 65, 100]), min_size=2, max_size=6).filter(any),
    resumed=st.booleans(),
    state_gradient=st.booleans(),
)
@examples(12)
def test_packed_documents_equal_the_recurrence(
    dtype: torch.dtype, lengths: list[int], resumed: bool, state_gradient: bool
) -> None:
    bounds = [0, *itertools.accumulate(lengths)]
    check(bounds, dtype, resumed=resumed, state_gradient=state_gradient)


@pytest.mark.parametrize("resumed", [False, True])
def test_packed_one_token_documents(resumed: bool) -> None:
    check(list(range(131)), torch.float64, resumed=resumed, state_gradient=resumed)


@pytest.mark.parametrize("packed", [False, True])
def test_many_segments(packed: bool) -> None:
    """So many values a token that each chunk is a segment of its own."""
    heads, values, T = 64, 128, 150
    slopes = torch.linspace(0, 2, heads)
    q, k = (random(1, T, heads, 1, seed=seed) for seed in (1, 2))
    v = random(1, T, heads, values, seed=3)
    cu_seqlens = torch.tensor([0, 30, 64, 120, 128, T]) if packed else None
    results = [
        with_gradients(lambda *x, b=b: lightning_attention(*x, slopes, None, cu_seqlens, b), [q, k, v], mute=mute)
        for b in ("torch", "reference")
        for mute in ((), (1,))
    ]
    for fast, exact in zip(results[:2], results[2:], strict=True):
        for a, e in zip(fast, exact, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("bounds", [[0, 67], [0, 3, 3, 66, 67]])
def test_gradients_by_finite_differences(bounds: list[int]) -> None:
    slopes = torch.tensor([0.05, 3.0], dtype=torch.float64)
    cu_seqlens = None if len(bounds) == 2 else torch.tensor(bounds)
    sizes = [(1, 67, 2, 2), (1, 67, 2, 2), (1, 67, 2, 3), (len(bounds) - 1, 2, 2, 3)]
    inputs = [random(*size, seed=seed).requires_grad_() for seed, size in enumerate(sizes)]

    def resumed(q, k, v, state):
        return lightning_attention(q, k, v, slopes, state, cu_seqlens)

    def fresh(q, k, v):
        return lightning_attention(q, k, v, slopes, None, cu_seqlens)

    assert torch.autograd.gradcheck(resumed, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(fresh, inputs[:3], fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_history_that_is_late_by_one_token_is_caught(dtype: torch.dtype) -> None:
    """The defect of kernels elsewhere: what came before the current token too large by ``exp(slope)``."""
    q, k, v, state = draw([0, 100], dtype)
    bounds = [0, 100]
    exact, _ = plain(q.double(), k.double(), v.double(), state.double(), bounds)
    right, _ = plain(q, k, v, state, bounds)
    wrong, _ = plain(q.double(), k.double(), v.double(), state.double(), bounds, late=1)
    steepest_released = 2
    one_head = (x[:, :, steepest_released] for x in (wrong.to(dtype), right, exact))
    with pytest.raises(AssertionError, match="error"):
        assert_within_noise(*one_head)
    out, _ = lightning_attention(q, k, v, SLOPES, state)
    assert_within_noise(out, right, exact, dim=2)


def test_steep_slopes_stay_finite() -> None:
    slopes = torch.tensor([0.0, 1e2, 1e10, torch.finfo(torch.float32).max / 1e4])
    q, k, v, state = draw([0, 130], torch.float32)
    results = with_gradients(lambda *x: lightning_attention(*x[:3], slopes, x[3]), [q, k, v, state])
    exact = with_gradients(lambda *x: lightning_attention(*x[:3], slopes, x[3], backend="reference"), [q, k, v, state])
    for a, e in zip(results, exact, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@given(cuts=st.lists(st.integers(0, 140), max_size=4))
@examples(10)
def test_a_prefill_in_parts_resumes_where_it_stopped(dtype: torch.dtype, cuts: list[int]) -> None:
    T = 140
    q, k, v, first = draw([0, T], dtype)
    exact, exact_end = lightning_attention(
        q.double(), k.double(), v.double(), SLOPES, first.double(), backend="reference"
    )
    same_precision, plain_end = plain(q, k, v, first, [0, T])
    state, outputs = first, []
    for start, end in itertools.pairwise([0, *sorted(cuts), T]):
        out, state = lightning_attention(q[:, start:end], k[:, start:end], v[:, start:end], SLOPES, state)
        state = torch.frombuffer(bytearray(state.numpy().tobytes()), dtype=state.dtype).view_as(state)  # saved
        outputs.append(out)
    assert_within_noise(torch.cat(outputs, 1), same_precision, exact, dim=2)
    assert_within_noise(state, plain_end, exact_end, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("state_gradient", [False, True])
def test_packed_documents_equal_the_same_alone(dtype: torch.dtype, state_gradient: bool) -> None:
    bounds = [0, 0, 1, 50, 128, 129, 200, 200]
    q, k, v, _ = draw(bounds, dtype)

    def packed(q, k, v):
        return lightning_attention(q, k, v, SLOPES, cu_seqlens=torch.tensor(bounds))

    def alone(q, k, v):
        each = [lightning_attention(q[:, a:b], k[:, a:b], v[:, a:b], SLOPES) for a, b in itertools.pairwise(bounds)]
        return torch.cat([out for out, _ in each], 1), torch.cat([state for _, state in each])

    mute = () if state_gradient else (1,)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    pairs = zip(with_gradients(packed, [q, k, v], mute=mute), with_gradients(alone, [q, k, v], mute=mute), strict=True)
    for together, apart in pairs:
        torch.testing.assert_close(together, apart, rtol=tolerance, atol=tolerance)


def test_no_document_sees_another() -> None:
    bounds = [0, 40, 100, 170]
    cu_seqlens = torch.tensor(bounds)
    q, k, v, _ = draw(bounds, torch.bfloat16)
    out, states = lightning_attention(q, k, v, SLOPES, cu_seqlens=cu_seqlens)
    k[:, 40:100], v[:, 40:100] = 7.0, -9.0
    other, other_states = lightning_attention(q, k, v, SLOPES, cu_seqlens=cu_seqlens)
    for start, end in ((0, 40), (100, 170)):
        assert torch.equal(out[:, start:end], other[:, start:end])
    assert torch.equal(states[[0, 2]], other_states[[0, 2]])
    assert not torch.equal(out[:, 40:100], other[:, 40:100])


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_of_one_projection_equal_copies(dtype: torch.dtype) -> None:
    qkv = random(2, 70, H, 3 * K, dtype=dtype)

    def of_views(qkv):
        return lightning_attention(*qkv.split(K, dim=-1), SLOPES)

    def of_copies(qkv):
        return lightning_attention(*(x.contiguous() for x in qkv.split(K, dim=-1)), SLOPES)

    for a, b in zip(with_gradients(of_views, [qkv]), with_gradients(of_copies, [qkv]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_no_tokens_leave_the_state_as_it_was(backend: str) -> None:
    q, k, v, state = draw([0, 0], torch.float32, batch=2)
    out, end = lightning_attention(q, k, v, SLOPES, state.requires_grad_(), backend=backend)
    assert out.shape == (2, 0, H, V)
    assert torch.equal(end, state)
    (gradient,) = torch.autograd.grad(end.sum(), state)
    assert torch.equal(gradient, torch.ones_like(state))
    _, ends = lightning_attention(q[:1], k[:1], v[:1], SLOPES, cu_seqlens=torch.tensor([0, 0, 0]), backend=backend)
    assert torch.equal(ends, torch.zeros(2, H, K, V))


def test_the_given_state_is_kept_and_the_new_one_stands_alone() -> None:
    q, k, v, state = draw([0, 200], torch.bfloat16)
    before = state.clone()
    _, end = lightning_attention(q, k, v, SLOPES, state)
    assert torch.equal(state, before)
    assert end.untyped_storage().nbytes() == end.numel() * end.element_size()


def test_the_backward_keeps_little_more_than_its_inputs() -> None:
    q, k, v, _ = (x.requires_grad_() for x in draw([0, 1000], torch.float32))
    kept: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        lightning_attention(q, k, v, SLOPES)
    inputs = sum(x.untyped_storage().nbytes() for x in (q, k, v))
    assert sum(kept.values()) < 1.1 * inputs


def test_second_derivatives_are_refused() -> None:
    q, k, v, _ = (x.requires_grad_() for x in draw([0, 5], torch.float64))
    out, _ = lightning_attention(q, k, v, SLOPES)
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(1, 5, H, K + 1)}, "q, k"),
        ({"k": torch.zeros(1, 6, H, K)}, "q, k"),
        ({"v": torch.zeros(1, 5, H + 1, V)}, "q, k"),
        ({"v": torch.zeros(1, 5, H)}, "q, k"),
        ({"slopes": torch.zeros(H + 1)}, "one slope a head"),
        ({"v": torch.zeros(1, 5, H, V, dtype=torch.bfloat16)}, "one dtype"),
        ({name: torch.zeros(1, 5, H, K, dtype=torch.int64) for name in "qkv"}, "floating"),
        ({"initial_state": torch.zeros(2, H, K, V)}, "initial_state"),
        ({"initial_state": torch.zeros(1, H, V, K)}, "initial_state"),
        ({"initial_state": torch.zeros(1, H, K, V), "cu_seqlens": torch.tensor([0, 2, 5])}, "initial_state"),
        ({"cu_seqlens": torch.tensor([0, 4])}, "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([1, 5])}, "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0, 4, 3, 5])}, "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([[0, 5]])}, "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0.0, 5.0])}, "cu_seqlens"),
        ({"backend": "cuda"}, "unknown"),
        ({"backend": "triton", **{name: torch.zeros(1, 5, H, K, dtype=torch.float64) for name in "qkv"}}, "float32"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    good = {
        "q": torch.zeros(1, 5, H, K),
        "k": torch.zeros(1, 5, H, K),
        "v": torch.zeros(1, 5, H, V),
        "slopes": SLOPES,
    }
    lightning_attention(**good)
    with pytest.raises(ValueError, match=message):
        lightning_attention(**{**good, **change})


def test_packed_documents_in_more_than_one_row_are_refused() -> None:
    x = torch.zeros(2, 5, H, K)
    with pytest.raises(ValueError, match="one row"):
        lightning_attention(x, x, x, SLOPES, cu_seqlens=torch.tensor([0, 5]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_slopes_are_refused(dtype: torch.dtype) -> None:
    """A buffer of a module that is cast is cast too, and its decays are other ones without a word."""
    q, k, v = torch.randn(3, 1, 5, 2, 16, dtype=dtype).unbind()
    with pytest.raises(ValueError, match="slopes in float32"):
        lightning_attention(q, k, v, SLOPES[:2].to(dtype))
    with pytest.raises(ValueError, match="slopes in float32"):
        lightning_attention_step(q[:, 0], k[:, 0], v[:, 0], SLOPES[:2].to(dtype), torch.zeros(1, 2, 16, 16))
