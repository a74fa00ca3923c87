"""The Triton kernels of lightning attention: in Triton's interpreter on a CPU, compiled on a GPU, the same tests."""

import importlib
import itertools

import pytest
import torch
from exactness import assert_within_noise, random, with_gradients

from leyden.ops import (
    lightning_attention,
    lightning_attention_decode,
    lightning_attention_prefill,
    lightning_attention_step,
)

launch, planning = (importlib.import_module(f"leyden.ops.lightning_attention.{name}") for name in ("launch", "plan"))

SLOPES = torch.tensor([0.0, 0.004, 0.9, 300.0])
H, K, V = 4, 6, 20
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check(
    bounds: list[int],
    dtype: torch.dtype,
    device: str,
    *,
    batch: int = 1,
    resumed: bool = True,
    widths: tuple[int, int] = (K, V),
) -> None:
    """Output, final state and all gradients under the precision rule, head by head."""
    K, V = widths
    T, rows = bounds[-1], batch if len(bounds) == 2 else len(bounds) - 1
    cu_seqlens = None if len(bounds) == 2 else torch.tensor(bounds, dtype=torch.int32)
    sizes = [(batch, T, H, K), (batch, T, H, K), (batch, T, H, V), (rows, H, K, V)][: 4 if resumed else 3]
    inputs = [
        random(*size, dtype=dtype if index < 3 else torch.float32, seed=index) for index, size in enumerate(sizes)
    ]

    def body(backend: str, where: str):
        cu = None if cu_seqlens is None else cu_seqlens.to(where)

        def op(*x: torch.Tensor):
            return lightning_attention(*x[:3], SLOPES.to(where), x[3] if resumed else None, cu, backend)

        return op

    mine = [x.cpu() for x in with_gradients(body("triton", device), [x.to(device) for x in inputs])]
    plain = with_gradients(body("torch", "cpu"), inputs)
    exact = with_gradients(body("reference", "cpu"), [x.double() for x in inputs])
    for name, a, p, e in zip(("output", "final state", "dq", "dk", "dv", "dstate"), mine, plain, exact, strict=False):
        assert_within_noise(a, p, e, dim=1 if "state" in name else 2, what=name)
    assert (mine[0].dtype, mine[1].dtype) == (dtype, torch.float32)


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are cut at every 64 tokens."""
    monkeypatch.setattr(planning, "_SHORTEST_SEGMENT", 64)
    monkeypatch.setattr(planning, "multiprocessors", lambda device: 1 << 20)


@pytest.mark.parametrize(
    ("num_tokens", "batch", "dtype"),
    [
        *((1, 1, dtype) for dtype in DTYPES),
        *((67, 2, dtype) for dtype in DTYPES[1:]),
        pytest.param(67, 2, DTYPES[0], marks=pytest.mark.slow),
    ],
)
def test_rows_equal_the_recurrence(dtype: torch.dtype, num_tokens: int, batch: int, device: str) -> None:
    check([0, num_tokens], dtype, device, batch=batch)


@pytest.mark.parametrize(
    ("num_tokens", "dtype", "chunk"),
    [
        *((n, torch.float32, c) for n, c in ((15, 16), (16, 16), (17, 32), (31, 32), (32, 32), (33, 32), (65, 32))),
        *((n, torch.bfloat16, c) for n, c in ((16, 16), (31, 32), (33, 64), (63, 64), (64, 64), (65, 64), (129, 64))),
    ],
)
def test_lengths_around_a_tile(num_tokens: int, dtype: torch.dtype, chunk: int, device: str) -> None:
    assert plan(num_tokens, 1, H, K, V, dtype).tiles.chunk == chunk
    check([0, num_tokens], dtype, device, resumed=False)


def plan(num_tokens: int, num_documents: int, heads: int, key_dim: int, value_dim: int, dtype=torch.bfloat16):
    """Of documents of equal length, on what stands for an H200."""
    q, v = (
        torch.empty(num_documents * num_tokens, heads, dim, dtype=dtype, device="meta") for dim in (key_dim, value_dim)
    )
    return planning.LaunchPlan.of(q, v, num_documents, num_tokens)


def test_tiles_of_wide_heads_and_short_documents() -> None:
    def chunks(width: int, dtype: torch.dtype) -> list[int]:
        return [plan(n, 1, 2, width, width, dtype).tiles.chunk for n in (0, 16, 17, 40, 1023, 1 << 20)]

    assert chunks(64, torch.bfloat16) == chunks(128, torch.bfloat16) == [16, 16, 32, 64, 64, 64]
    assert chunks(64, torch.float16) == [16, 16, 32, 64, 64, 64]
    assert chunks(256, torch.bfloat16) == chunks(16, torch.float32) == [16, 16, 32, 32, 32, 32]
    assert chunks(64, torch.float32) == [16] * 6
    assert plan(1 << 20, 1, 2, 64, 256).tiles == plan(1 << 20, 1, 2, 256, 64).tiles


def test_programs_fill_the_multiprocessors() -> None:
    """Whole heads where programs are many; else parts of their value dims, and of their tokens."""
    many, few = plan(2048, 8, 64, 128, 128), plan(8192, 1, 64, 128, 128)
    assert (many.tiles.value_dims, many.split) == (128, False)
    assert (few.tiles.value_dims, few.split) == (64, False)
    for heads, dim in ((48, 128), (24, 64), (16, 128), (64, 64)):
        cut = plan(131_072, 1, heads, dim, dim)
        programs = heads * -(-dim // cut.tiles.value_dims) * -(-131_072 // cut.length)
        assert 0.7 <= programs / (132 * cut.tiles.resident) <= 1


bfloat16_or_all = pytest.mark.parametrize(
    "dtype", [DTYPES[0], *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[1:])]
)


@bfloat16_or_all
def test_packed_documents_equal_the_recurrence(dtype: torch.dtype, device: str) -> None:
    check([0, 0, 1, 2, 40, 72, 72], dtype, device)


@bfloat16_or_all
@pytest.mark.parametrize("resumed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_documents_cut_into_segments(dtype: torch.dtype, resumed: bool, short_segments: None, device: str) -> None:
    """Empty, of one token, one segment, one and a token, three."""
    check([0, 0, 1, 65, 130, 300, 300], dtype, device, resumed=resumed)


@pytest.mark.parametrize("sizes", [(16, 16), (33, 16), (5, 130)])
def test_widths(sizes: tuple[int, int], device: str) -> None:
    q, k = (random(1, 40, 1, sizes[0], dtype=torch.float32, seed=seed) for seed in (1, 2))
    v = random(1, 40, 1, sizes[1], dtype=torch.float32, seed=3)
    slopes = torch.tensor([0.1])
    mine = with_gradients(
        lambda *x: lightning_attention(*x, slopes.to(device), backend="triton"), [x.to(device) for x in (q, k, v)]
    )
    exact = with_gradients(lambda *x: lightning_attention(*x, slopes, backend="reference"), [q, k, v])
    for a, e in zip(mine, exact, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=2e-5, atol=2e-5)


def test_views_of_one_projection(device: str) -> None:
    qkv = random(2, 17, H, 3 * K, dtype=torch.float32).to(device)
    slopes = SLOPES.to(device)

    def of(views: bool):
        def op(x: torch.Tensor):
            parts = x.split(K, dim=-1)
            return lightning_attention(*(parts if views else [p.contiguous() for p in parts]), slopes, backend="triton")

        return op

    for a, b in zip(with_gradients(of(True), [qkv]), with_gradients(of(False), [qkv]), strict=True):
        assert torch.equal(a, b)


def test_a_final_state_is_not_poisoned_by_the_tail(device: str) -> None:
    """The known defect: rows beyond the last token read as 0 times infinity."""
    memory = torch.full((1, 64, H, V), torch.nan, device=device)
    memory[:, :40] = random(1, 40, H, V, dtype=torch.float32).to(device)
    k = torch.full((1, 64, H, V), torch.inf, device=device)
    k[:, :40] = 1.0
    out, state = lightning_attention(k[:, :40], k[:, :40], memory[:, :40], SLOPES.to(device), backend="triton")
    assert out.isfinite().all()
    assert state.isfinite().all()


def test_steep_slopes_stay_finite(device: str) -> None:
    slopes = torch.tensor([0.0, 1e2, 1e10, torch.finfo(torch.float32).max / 1e4], device=device)
    x = random(1, 35, H, 16, dtype=torch.float32).to(device)
    for result in with_gradients(lambda x: lightning_attention(x, x, x, slopes, backend="triton"), [x]):
        assert result.isfinite().all()


def test_another_length_compiles_nothing_new(device: str) -> None:
    """A length that is a compile-time constant means a new kernel for every prompt."""
    if device == "cpu":
        pytest.skip("the interpreter compiles nothing")
    kernels = importlib.import_module("leyden.ops.lightning_attention.kernels")

    def compiled() -> int:
        return sum(len(cache[0]) for cache in kernels.attend.device_caches.values())

    counts = []
    for num_tokens in (1000, 1001, 1017, 1999):
        x = torch.randn(1, num_tokens, H, 64, device=device)
        lightning_attention(x, x, x, SLOPES.to(device), backend="triton")
        counts.append(compiled())
    assert counts[1] == counts[-1]


@pytest.mark.slow
def test_the_same_bits_again(short_segments: None, device: str) -> None:
    bounds = [0, 30, 200]
    q, k, v = (random(1, 200, H, K, dtype=torch.float32, seed=seed).to(device) for seed in range(3))
    cu = torch.tensor(bounds, device=device)
    once, again = (
        with_gradients(lambda *x: lightning_attention(*x, SLOPES.to(device), None, cu, "triton"), [q, k, v])
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(once, again))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("cut", [False, True])
def test_prefill_and_decode_in_a_pool_of_states(
    backend: str, cut: bool, device: str, request: pytest.FixtureRequest
) -> None:
    """A ragged batch read in two parts, then token by token, equals each document by itself; other slots stay."""
    if cut:
        request.getfixturevalue("short_segments")
    lengths, slots = [100, 1, 70], torch.tensor([4, 0, 2], device=device)
    slopes, dtype = SLOPES.to(device), torch.float32
    documents = [
        [random(1, n + 3, H, size, dtype=dtype, seed=10 * i + s).to(device) for s, size in enumerate((K, K, V))]
        for i, n in enumerate(lengths)
    ]
    states = torch.full((6, H, K, V), torch.nan, device=device)
    states[slots] = 0
    outputs: list[list[torch.Tensor]] = [[] for _ in lengths]
    for begin, end in ((lambda n: 0, lambda n: n // 2), (lambda n: n // 2, lambda n: n)):
        parts = [[x[:, begin(n) : end(n)] for x in doc] for doc, n in zip(documents, lengths, strict=True)]
        sizes = [part[0].shape[1] for part in parts]
        cu = torch.tensor([0, *itertools.accumulate(sizes)], device=device)
        packed = [torch.cat(xs, 1) for xs in zip(*parts, strict=True)]
        out = lightning_attention_prefill(*packed, slopes, states, slots, cu, backend)
        for kept, piece in zip(outputs, out.split(sizes, dim=1), strict=True):
            kept.append(piece)
    nobody = torch.zeros(1, H, 1, device=device)
    for step in range(3):
        token = [
            torch.cat([*(doc[i][:, n + step] for doc, n in zip(documents, lengths, strict=True)),
                       nobody.expand(1, H, documents[0][i].shape[-1])])
            for i in range(3)
        ]  # fmt: skip
        padded_slots = torch.cat([slots, slots.new_tensor([-1])])
        out = lightning_attention_decode(*token, slopes, states, padded_slots, backend)
        assert torch.equal(out[3], torch.zeros_like(out[3]))
        for kept, piece in zip(outputs, out, strict=False):
            kept.append(piece[None, None])
    for doc, kept, slot in zip(documents, outputs, slots, strict=True):
        exact, end = lightning_attention(*(x.double() for x in doc), slopes, backend="reference")
        torch.testing.assert_close(torch.cat(kept, 1).double(), exact, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(states[slot][None].double(), end, rtol=1e-4, atol=1e-4)
    assert states[[1, 3, 5]].isnan().all()


@pytest.mark.slow
def test_nothing_breaks_the_graph(device: str) -> None:
    """torch.compile sees one opaque operation, forward and backward, with the right shapes and dtypes."""
    q, k = (random(1, 40, H, K, dtype=torch.float32, seed=seed).to(device) for seed in (1, 2))
    v = random(1, 40, H, V, dtype=torch.float32, seed=3).to(device)
    slopes, cu = SLOPES.to(device), torch.tensor([0, 10, 40], device=device)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor):
        return lightning_attention(q * 2, k, v, slopes, None, cu if device == "cuda" else None, "triton")

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for a, b in zip(with_gradients(compiled, [q, k, v]), with_gradients(attend, [q, k, v]), strict=True):
        torch.testing.assert_close(a, b)
    torch.library.opcheck(launch._forward, (q[0], k[0], v[0].requires_grad_(), slopes, None, cu, 2))
    states, slots = torch.zeros(3, H, K, V, device=device), torch.tensor([2, 0], device=device)
    torch.library.opcheck(launch.prefill, (q[0], k[0], v[0].detach(), slopes, states, slots, cu))
    torch.library.opcheck(launch.decode, (q[0, :2], k[0, :2], v[0, :2].detach(), slopes, states, slots))
    torch.library.opcheck(launch.step, (q[0, :3], k[0, :3], v[0, :3].detach(), slopes, states))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_equals_the_recurrence(dtype: torch.dtype, device: str) -> None:
    sizes = [(3, H, K), (3, H, K), (3, H, V)]
    token = [random(*size, dtype=dtype, seed=seed) for seed, size in enumerate(sizes)]
    state = random(3, H, K, V, dtype=torch.float32, seed=4)
    given = [x.to(device) for x in (*token, SLOPES, state.mT.contiguous().mT)]  # states that lie otherwise
    mine = [x.cpu() for x in lightning_attention_step(*given, "triton")]
    plain = lightning_attention_step(*token, SLOPES, state, "torch")
    exact = lightning_attention_step(*(x.double() for x in token), SLOPES, state.double(), "torch")
    for a, p, e in zip(mine, plain, exact, strict=True):
        assert a.dtype == p.dtype
        assert_within_noise(a, p, e, dim=1)


def test_a_step_has_no_gradients_in_triton() -> None:
    x, state = torch.ones(1, H, K, requires_grad=True), torch.zeros(1, H, K, K)
    with pytest.raises(ValueError, match="no Triton body"):
        lightning_attention_step(x, x, x, SLOPES, state, "triton")
    with pytest.raises(ValueError, match="no Triton body"):
        lightning_attention_step(x.detach(), x.detach(), x.detach(), SLOPES, state.double(), "triton")


@pytest.mark.slow
def test_slow_heads_forget_at_their_rate(device: str) -> None:
    """What a decay rounded to float32 loses of a slope of 5e-5 is 0.1 %, of 4e-8 half or all of it."""
    slopes = torch.tensor([5e-5, 1e-6, 4e-8], device=device)
    state = random(1, 3, 16, 16, dtype=torch.float32, seed=1).to(device)
    zeros, first = torch.zeros(1, 3, 16, device=device), state.clone()
    steps = 300
    for _ in range(steps):
        _, state = lightning_attention_step(zeros, zeros, zeros, slopes, state, "triton")
    lost = ((first - state).double() / first).mean(dim=(0, 2, 3)).cpu()
    expected = -torch.expm1(-steps * slopes.double()).cpu()
    torch.testing.assert_close(lost[:2], expected[:2], rtol=3e-2, atol=0)


def test_a_slot_of_nobody_is_zero_whatever_its_token_holds(device: str) -> None:
    x = torch.full((2, H, 16), torch.nan, device=device)
    x[0] = 1
    states = torch.zeros(1, H, 16, 16, device=device)
    out = lightning_attention_decode(x, x, x, SLOPES.to(device), states, torch.tensor([0, -1], device=device), "triton")
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert states.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("whole_heads", [False, True])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("cut", [False, True])
def test_the_widths_that_models_have(
    width: int,
    cut: bool,
    whole_heads: bool,
    device: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Heads of 64 and 128 in bfloat16; a program has all value dims where programs are many, half of them where few."""
    if cut:
        request.getfixturevalue("short_segments")
    if whole_heads:
        monkeypatch.setattr(planning, "multiprocessors", lambda device: width // 16 if cut else 1)
    bounds = [0, 70, 263]
    x = torch.empty(bounds[-1], H, width, dtype=torch.bfloat16)
    chosen = planning.LaunchPlan.of(x, x, 2, bounds[-1])
    assert (chosen.tiles.value_dims, chosen.split) == (width if whole_heads else width // 2, cut)
    check(bounds, torch.bfloat16, device, widths=(width, width))


def test_another_length_is_no_other_graph(device: str) -> None:
    """What is decided from the length is decided by comparisons, which a graph of any length keeps."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    slopes = SLOPES.to(device)
    attend = torch.compile(
        lambda x: lightning_attention(x * 2, x, x, slopes, backend="triton")[0],
        fullgraph=True, dynamic=True, backend=counter,
    )  # fmt: skip
    for num_tokens in (40, 77):
        attend(random(1, num_tokens, H, 16, dtype=torch.float32).to(device))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": torch.zeros(3, H, V, K)}, "states"),
        ({"states": torch.zeros(3, H, K, V, dtype=torch.bfloat16)}, "float32"),
        ({"states": torch.zeros(3, H, V, K).transpose(2, 3)}, "contiguous"),
        ({"slots": torch.tensor([0])}, "2 slots"),
        ({"slots": torch.tensor([0.0, 1.0])}, "integers"),
    ],
)
def test_a_pool_that_does_not_fit_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    x, v = torch.zeros(2, H, K), torch.zeros(2, H, V)
    good = {"states": torch.zeros(3, H, K, V), "slots": torch.tensor([0, 2])}
    assert lightning_attention_decode(x, x, v, SLOPES, **good).shape == (2, H, V)
    with pytest.raises(ValueError, match=message):
        lightning_attention_decode(x, x, v, SLOPES, **{**good, **change})


@pytest.mark.gpu
def test_offsets_beyond_32_bits() -> None:
    """2.5 billion elements a tensor; with a steep slope the last tokens need no others."""
    T, slopes = 300_000, torch.full((64,), 0.5, device="cuda")
    x = torch.randn(1, T, 64, 128, dtype=torch.bfloat16, device="cuda")
    out, state = lightning_attention(x, x, x, slopes, backend="triton")
    tail = x[:, -200:].clone()
    expected, expected_state = lightning_attention(tail, tail, tail, slopes, backend="reference")
    torch.testing.assert_close(out[:, -64:], expected[:, -64:], rtol=2e-2, atol=0.5)
    # Values that have decayed are rounded to bfloat16, 2^-9 of products as large as 16, before float32 sums them.
    torch.testing.assert_close(state, expected_state, rtol=1e-3, atol=0.1)


@pytest.mark.gpu
def test_decoding_in_a_cuda_graph() -> None:
    q, k, v = (random(4, H, size, dtype=torch.float32, seed=size).cuda() for size in (K, K, V))
    states, slots, slopes = torch.zeros(5, H, K, V, device="cuda"), torch.tensor([3, 0, 1, -1]).cuda(), SLOPES.cuda()
    expected_states = states.clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiled before the capture
        lightning_attention_decode(q, k, v, slopes, states.clone(), slots, "triton")
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = lightning_attention_decode(q, k, v, slopes, states, slots, "triton")
    states.zero_()
    for step in range(3):
        v.copy_(random(4, H, V, dtype=torch.float32, seed=step))
        graph.replay()
        expected = lightning_attention_decode(q, k, v, slopes, expected_states, slots, "torch")
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(states, expected_states, rtol=1e-4, atol=1e-4)
