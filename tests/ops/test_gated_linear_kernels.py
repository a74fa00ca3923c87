"""The Triton kernels of gated linear attention: in Triton's interpreter on a CPU, compiled on a GPU, the same tests."""

import contextlib
import importlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import assert_within_noise, random, with_gradients
from torch.utils._python_dispatch import TorchDispatchMode

from leyden.ops import (
    gated_linear_attention,
    gated_linear_attention_decode,
    gated_linear_attention_prefill,
    gated_linear_attention_step,
)

launch = importlib.import_module("leyden.ops.gated_linear_attention.launch")
planning = importlib.import_module("leyden.ops.lightning_attention.plan")

H, K, V = 3, 6, 20
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAMES = ("output", "final state", "dq", "dk", "dv", "dlog_decay", "dstate")


class BFloat16Products(TorchDispatchMode):
    """Products of matrices take float32 operands as bfloat16, forward and backward: plain PyTorch in that precision."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default):
            args = [x.bfloat16().float() for x in args]
        return op(*args, **(kwargs or {}))


def draw(bounds: list[int], dtype: torch.dtype, batch: int = 1, widths: tuple[int, int] = (K, V)) -> list[torch.Tensor]:
    """q, k, v, decays and a state a row, or a document. The first head forgets slowly, the last at once or never."""
    (K, V), T, rows = widths, bounds[-1], batch if len(bounds) == 2 else len(bounds) - 1
    q, k, v = (random(batch, T, H, D, dtype=dtype, seed=seed) for seed, D in ((1, K), (2, K), (3, V)))
    decay = -torch.exp(random(batch, T, H, K, seed=4) * torch.tensor([1.0, 3.0, 6.0])[:, None])
    decay[:, :, 0] *= 1e-3
    decay[:, :, 2].masked_fill_(decay[:, :, 2] < -50, -torch.inf).masked_fill_(decay[:, :, 2] > -0.01, 0)
    return [q, k, v, decay.float(), random(rows, H, K, V, dtype=torch.float32, seed=5)]


def check(
    bounds: list[int],
    dtype: torch.dtype,
    device: str,
    *,
    batch: int = 1,
    resumed: bool = True,
    widths: tuple[int, int] = (K, V),
    mute: tuple[int, ...] = (),
) -> None:
    """Output, final state and all gradients under the precision rule, head by head."""
    cu_seqlens = None if len(bounds) == 2 else torch.tensor(bounds, dtype=torch.int32)
    inputs = draw(bounds, dtype, batch, widths)[: 5 if resumed else 4]

    def body(backend: str, where: str):
        cu = None if cu_seqlens is None else cu_seqlens.to(where)
        return lambda *x: gated_linear_attention(*x[:4], x[4] if resumed else None, cu, backend)

    mine = [x.cpu() for x in with_gradients(body("triton", device), [x.to(device) for x in inputs], mute=mute)]
    if dtype == torch.bfloat16:
        with BFloat16Products():
            plain = with_gradients(body("torch", "cpu"), inputs, mute=mute)
    else:
        plain = with_gradients(body("torch", "cpu"), inputs, mute=mute)
    exact = with_gradients(body("reference", "cpu"), [x.double() for x in inputs], mute=mute)
    for name, a, p, e in zip(NAMES, mine, plain, exact, strict=False):
        assert_within_noise(a, p, e, dim=1 if "state" in name else 2, what=name)
    assert (mine[0].dtype, mine[1].dtype, mine[5].dtype) == (dtype, torch.float32, torch.float32)


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are cut at every 64 tokens."""
    monkeypatch.setattr(planning, "_SHORTEST_SEGMENT", 64)
    monkeypatch.setattr(planning, "multiprocessors", lambda device: 1 << 20)


bfloat16_or_all = pytest.mark.parametrize(
    "dtype", [DTYPES[0], *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[1:])]
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_short_row_equals_the_recurrence(dtype: torch.dtype, device: str) -> None:
    check([0, 17], dtype, device)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 15, 16, 31, 33, 64, 65, 129])
def test_lengths_around_a_chunk(dtype: torch.dtype, num_tokens: int, device: str) -> None:
    check([0, num_tokens], dtype, device, batch=2, resumed=num_tokens % 2 == 1)


@bfloat16_or_all
def test_packed_documents_cut_into_segments(dtype: torch.dtype, short_segments: None, device: str) -> None:
    """Empty, of one token, and of a segment and a token."""
    check([0, 0, 1, 66], dtype, device)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_the_output_alone(dtype: torch.dtype, device: str) -> None:
    check([0, 40, 75], dtype, device, mute=(1,))


@pytest.mark.slow
def test_gradients_of_the_final_state_alone(device: str) -> None:
    """It does not depend on the queries."""
    q, *others = (x.to(device) for x in draw([0, 40], torch.float32))

    def body(backend: str):
        return lambda k, v, g, state: gated_linear_attention(q.to(k.dtype), k, v, g, state, backend=backend)

    mine, plain = (with_gradients(body(backend), others, mute=(0,)) for backend in ("triton", "torch"))
    exact = with_gradients(body("reference"), [x.double() for x in others], mute=(0,))
    for a, p, e in zip(mine[1:], plain[1:], exact[1:], strict=True):
        assert_within_noise(a.cpu(), p.cpu(), e.cpu())


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("widths", [(16, 16), (64, 64), (128, 128), (33, 16), (5, 130)])
def test_widths(widths: tuple[int, int], cut: bool, device: str, request: pytest.FixtureRequest) -> None:
    if cut:
        request.getfixturevalue("short_segments")
    check([0, 30, 110], torch.bfloat16, device, widths=widths)


def test_what_a_token_forgets_is_gone(device: str) -> None:
    """Behind a token that forgets all, a sequence is the one that begins with it, however large the past was; and the
    gradient of a log decay of minus infinity is 0, whatever lies on its two sides."""
    q, k, v, decay, state = (x.to(device) for x in draw([0, 24], torch.float32))
    decay = decay.clamp(min=-1)
    decay[:, 13] = -torch.inf
    k[:, :13] *= 1e4
    out, end, *gradients = with_gradients(
        lambda *x: gated_linear_attention(*x, backend="triton"), [q, k, v, decay, 1e6 * state]
    )
    fresh, fresh_end = gated_linear_attention(*(x[:, 13:] for x in (q, k, v, decay)), backend="triton")
    torch.testing.assert_close(out[:, 13:], fresh, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(end, fresh_end, rtol=1e-5, atol=1e-4)
    assert not gradients[3][:, 13].any()
    assert all(x.isfinite().all() for x in gradients)


@pytest.mark.slow
def test_a_nan_stays_in_its_document(device: str) -> None:
    bounds = torch.tensor([0, 20, 50, 90], device=device)
    *tokens, _ = (x.to(device) for x in draw(bounds.tolist(), torch.bfloat16))
    clean = with_gradients(lambda *x: gated_linear_attention(*x, None, bounds, "triton"), tokens)
    for at in range(4):
        spoilt = [x.clone() for x in tokens]
        spoilt[at][:, 30] = torch.nan
        found = with_gradients(lambda *x: gated_linear_attention(*x, None, bounds, "triton"), spoilt)
        for a, b in zip((found[0], *found[2:]), (clean[0], *clean[2:]), strict=True):
            assert torch.equal(a[:, :20], b[:, :20]) and torch.equal(a[:, 50:], b[:, 50:])
        assert torch.equal(found[1][[0, 2]], clean[1][[0, 2]])
        assert found[0][:, 30:50].isnan().any()


@pytest.mark.slow
def test_views_of_one_projection_and_one_decay_a_head(device: str) -> None:
    qkv, decay = random(2, 17, H, 3 * K, dtype=torch.float32).to(device), -random(2, 17, H, 1, seed=1).square().float()

    def of(views: bool):
        def op(x: torch.Tensor, g: torch.Tensor):
            parts = x.split(K, dim=-1)
            parts = parts if views else [p.contiguous() for p in parts]
            return gated_linear_attention(*parts, g if views else g.expand(2, 17, H, K), backend="triton")

        return op

    inputs = [qkv, decay.to(device)]
    for a, b in zip(with_gradients(of(True), inputs), with_gradients(of(False), inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_the_same_bits_again(short_segments: None, device: str) -> None:
    inputs, cu = [x.to(device) for x in draw([0, 30, 200], torch.bfloat16)], torch.tensor([0, 30, 200], device=device)
    once, again = (with_gradients(lambda *x: gated_linear_attention(*x, cu, "triton"), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("cut", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_prefill_and_decode_in_a_pool_of_states(cut: bool, device: str, request: pytest.FixtureRequest) -> None:
    """A ragged batch read in two parts, then token by token, equals each document by itself; other slots stay."""
    if cut:
        request.getfixturevalue("short_segments")
    lengths, slots = ([100, 1, 70] if cut else [20, 1]), torch.tensor([4, 0, 2], device=device)
    slots = slots[: len(lengths)]
    documents = [[x.to(device) for x in draw([0, n + 2], torch.float32)[:4]] for n in lengths]
    states = torch.full((6, H, K, V), torch.nan, device=device)
    states[slots] = 0
    outputs: list[list[torch.Tensor]] = [[] for _ in lengths]
    for begin, end in ((lambda n: 0, lambda n: n // 2), (lambda n: n // 2, lambda n: n)):
        parts = [[x[:, begin(n) : end(n)] for x in doc] for doc, n in zip(documents, lengths, strict=True)]
        sizes = [part[0].shape[1] for part in parts]
        cu = torch.tensor([0, *itertools.accumulate(sizes)], device=device)
        packed = [torch.cat(xs, 1) for xs in zip(*parts, strict=True)]
        out = gated_linear_attention_prefill(*packed, states, slots, cu, "triton")
        for kept, piece in zip(outputs, out.split(sizes, dim=1), strict=True):
            kept.append(piece)
    for step in range(2):
        nobody = [x[:, 0] * torch.nan for x in documents[0]]
        given = (doc_at(documents, lengths, step), nobody)
        token = [torch.cat(xs) for xs in zip(*given, strict=True)]
        somebody = torch.cat([slots, slots.new_tensor([-1])])
        out = gated_linear_attention_decode(*token, states, somebody, "triton")
        assert torch.equal(out[-1], torch.zeros_like(out[-1]))
        for kept, piece in zip(outputs, out, strict=False):
            kept.append(piece[None, None])
    for doc, kept, slot in zip(documents, outputs, slots, strict=True):
        exact, end = gated_linear_attention(*(x.double() for x in doc), backend="reference")
        torch.testing.assert_close(torch.cat(kept, 1).double(), exact, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(states[slot][None].double(), end, rtol=1e-4, atol=1e-4)
    others = [slot for slot in range(6) if slot not in slots.tolist()]
    assert states[others].isnan().all()


def doc_at(documents: list[list[torch.Tensor]], lengths: list[int], step: int) -> list[torch.Tensor]:
    """One token of each document, behind what was prefilled."""
    return [
        torch.cat([doc[at][:, n + step] for doc, n in zip(documents, lengths, strict=True)])
        for at in range(len(documents[0]))
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_equals_the_recurrence(dtype: torch.dtype, device: str) -> None:
    *tokens, state = draw([0, 1], dtype, 2)
    token = [x[:, 0] for x in tokens]
    given = [x.to(device) for x in (*token, state.mT.contiguous().mT)]  # states that lie otherwise
    mine = [x.cpu() for x in gated_linear_attention_step(*given, "triton")]
    plain = gated_linear_attention_step(*token, state, "torch")
    exact = gated_linear_attention_step(*(x.double() for x in token), state.double(), "torch")
    for a, p, e in zip(mine, plain, exact, strict=True):
        assert a.dtype == p.dtype
        assert_within_noise(a, p, e, dim=1)


def test_a_step_has_no_gradients_in_triton() -> None:
    x, state = torch.ones(1, H, K, requires_grad=True), torch.zeros(1, H, K, K)
    decay = torch.zeros(1, H, K)
    with pytest.raises(ValueError, match="no Triton body"):
        gated_linear_attention_step(x, x, x, decay, state, "triton")
    with pytest.raises(ValueError, match="no Triton body"):
        gated_linear_attention_step(x.detach(), x.detach(), x.detach(), decay, state.double(), "triton")


@pytest.mark.slow
def test_slow_decays_are_not_rounded(device: str) -> None:
    """exp of this one would be rounded by 0.7 % of what a token forgets, at every token alike."""
    tokens, decay = 256, -3e-6
    zeros, slow = torch.zeros(1, tokens, 1, 16, device=device), torch.full((1, tokens, 1, 16), decay, device=device)
    state = torch.ones(1, 1, 16, 16, device=device)
    for _ in range(16):
        _, state = gated_linear_attention(zeros, zeros, zeros, slow, state, backend="triton")
    forgotten = 1 - torch.exp(torch.tensor(16.0 * tokens * decay, dtype=torch.float64))
    torch.testing.assert_close(1 - state.double().cpu(), forgotten.expand(1, 1, 16, 16), rtol=1e-3, atol=0)


@pytest.mark.slow
def test_nothing_breaks_the_graph(device: str) -> None:
    """torch.compile sees one opaque operation, forward and backward, with the right shapes and dtypes."""
    inputs = [x.to(device) for x in draw([0, 10, 40], torch.float32)]
    cu = torch.tensor([0, 10, 40], device=device)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, state: torch.Tensor):
        return gated_linear_attention(q * 2, k, v, g, state, cu, "triton")

    if device == "cuda":
        compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
        for a, b in zip(with_gradients(compiled, inputs), with_gradients(attend, inputs), strict=True):
            torch.testing.assert_close(a, b)
    *tokens, initial = inputs
    q, k, v, g = (x[0] for x in tokens)
    torch.library.opcheck(launch._forward, (q, k, v.clone().requires_grad_(), g.clamp(min=-1), initial, cu, 2))
    states, slots = torch.zeros(3, H, K, V, device=device), torch.tensor([2, 0], device=device)
    torch.library.opcheck(launch.prefill, (q, k, v, g, states, slots, cu))
    torch.library.opcheck(launch.decode, (q[:2], k[:2], v[:2], g[:2], states, slots))
    torch.library.opcheck(launch.step, (q[:3], k[:3], v[:3], g[:3], states))


def test_decays_of_a_chunk_are_not_taken_back(device: str) -> None:
    """What the tests above would not see of a body that divides by decays: it overflows where a dim forgets fast."""
    q, k, v, _, _ = draw([0, 17], torch.float32)
    decay = torch.full_like(q, -80.0)
    out = gated_linear_attention(*(x.to(device) for x in (q, k, v, decay)), backend="triton")[0].cpu()
    exact, _ = gated_linear_attention(*(x.double() for x in (q, k, v, decay)), backend="reference")
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_nothing_is_read_back(no_reading_back: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """Of packed documents, forward and backward: the host does not wait for the GPU."""
    *tokens, state = (x.to("cuda") for x in draw([0, 300, 1000], torch.bfloat16, 1, (64, 64)))
    leaves, cu = [x.requires_grad_() for x in tokens], torch.tensor([0, 300, 1000], device="cuda")
    for context in (contextlib.nullcontext, no_reading_back):  # compiled at the first call
        with context():
            out, end = gated_linear_attention(*leaves, state, cu, "triton")
            (out.float().sum() + end.sum()).backward()
