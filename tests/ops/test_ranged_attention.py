"""Attention over ranges of keys against its formula in float64, and partial results that merge into whole ones."""

import importlib
import itertools
import math
import random as drawing
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from exactness import HARDWARE, assert_within_noise, random

from leyden.ops import ranged_attention, ranged_attention_backward, softmax_attention

launch = importlib.import_module("leyden.ops.ranged_attention.launch")
launching = importlib.import_module("leyden.ops.launching")
portable = importlib.import_module("leyden.ops.ranged_attention.portable")

D = 8
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
CPU_BODIES = ("reference", "torch")


def draw(
    T: int, S: int, heads: tuple[int, int], dtype: torch.dtype, dim: int = D, seed: int = 0
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """dout, q, k, v, and ranges as a ring has them: rising, some of nothing, some of one key, some of all before."""
    (Hq, Hkv), drawn = heads, drawing.Random(seed)
    tensors = [
        random(n, h, dim, dtype=dtype, seed=i) for i, (n, h) in enumerate(((T, Hq), (T, Hq), (S, Hkv), (S, Hkv)))
    ]
    firsts = sorted(drawn.randint(0, S) for _ in range(max(1, T // 9)))
    first = sorted(drawn.choice(firsts) for _ in range(T))
    last = [max(f, x) for f, x in zip(first, sorted(drawn.randint(0, S) for _ in range(T)), strict=True)]
    last = list(itertools.accumulate(last, max))
    return tensors, [torch.tensor(x, dtype=torch.int32) for x in (first, last)]


def by_formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query by query, differentiable, in the dtype of the inputs."""
    group, outs, lses = q.shape[1] // k.shape[1], [], []
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    for row, begin, end in zip(q, first.tolist(), last.tolist(), strict=True):
        scores = torch.einsum("hd,shd->hs", row, k[begin:end]) / math.sqrt(q.shape[2])
        lses.append(scores.logsumexp(-1) if end > begin else scores.new_full(row.shape[:1], -math.inf))
        outs.append(torch.einsum("hs,shd->hd", scores.softmax(-1), v[begin:end]) + 0 * row)
    return torch.stack(outs), torch.stack(lses)


def differentiated(tensors: list[torch.Tensor], ranges: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output, log-sum-exp, dq, dk and dv of the formula by autograd."""
    dout, *inputs = tensors
    leaves = [x.clone().requires_grad_() for x in inputs]
    out, lse = by_formula(*leaves, *ranges)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, dout)]


def both_passes(tensors: list[torch.Tensor], ranges: list[torch.Tensor], backend: str) -> list[torch.Tensor]:
    dout, *inputs = tensors
    out, lse = ranged_attention(*inputs, *ranges, backend)
    delta = (dout.to(lse.dtype) * out).sum(-1)
    return [out, lse, *ranged_attention_backward(dout, *inputs, lse, delta, *ranges, backend)]


def check(tensors: list[torch.Tensor], ranges: list[torch.Tensor], backend: str, device: str = "cpu") -> None:
    dtype = tensors[0].dtype
    moved = [x.to(device) for x in tensors], [x.to(device) for x in ranges]
    found = [x.cpu() for x in both_passes(*moved, backend)]
    exact = differentiated([x.double() for x in tensors], ranges)
    # Half precision is held to autograd's noise, full precision to that of the same formula in plain PyTorch.
    plain = both_passes(tensors, ranges, "reference") if dtype.itemsize >= 4 else differentiated(tensors, ranges)
    empty = ranges[0] >= ranges[1]
    assert found[0][empty].count_nonzero() == 0 and found[1][empty].eq(-math.inf).all()
    for name, f, e, p in zip(("out", "lse", "dq", "dk", "dv"), found, exact, plain, strict=True):
        assert f.dtype == torch.promote_types(dtype, torch.float32)
        if name in ("out", "lse", "dq"):
            f, e, p = f[~empty], e[~empty], p[~empty]
        assert_within_noise(f.to(dtype), p, e, what=name, hardware=HARDWARE if backend == "triton" else 0.0)


@pytest.mark.parametrize("backend", CPU_BODIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (6, 1), (3, 3)])
def test_ranges_by_formula(dtype: torch.dtype, heads: tuple[int, int], backend: str) -> None:
    for seed, (T, S) in enumerate([(1, 1), (1, 40), (37, 5), (60, 60), (150, 70)]):
        check(*draw(T, S, heads, dtype, seed=seed), backend)


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("heads", [(1, 1), (4, 2)])
def test_triton_by_formula(dtype: torch.dtype, heads: tuple[int, int], device: str) -> None:
    for seed, (T, S) in enumerate([(1, 40), (37, 5), (130 // heads[0], 70)]):
        check(*draw(T, S, heads, dtype, dim=24, seed=seed), "triton", device)


@pytest.mark.parametrize("dim", [1, 16, 100, 256])
def test_triton_widths(dim: int, device: str) -> None:
    check(*draw(60, 70, (2, 1), torch.float32, dim=dim), "triton", device)


@pytest.mark.parametrize("capability", [8, 9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_blocks_that_need_no_mask(
    dtype: torch.dtype, capability: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Causal over several blocks, by the tiles of both kinds of GPU; and two documents, the second behind a block."""
    monkeypatch.setattr(launching, "_OFF_A_GPU", capability)
    T = (150 if capability == 8 else 200) if dtype == torch.bfloat16 else 75
    tensors, _ = draw(T, T, (2, 1), dtype, dim=24)
    last = torch.arange(1, T + 1, dtype=torch.int32)
    check(tensors, [torch.zeros_like(last), last], "triton", device)
    first = torch.where(last > 70, 70, 0).to(torch.int32)
    check(tensors, [first, torch.where(last > 70, T, 70).to(torch.int32)], "triton", device)


@pytest.mark.parametrize("count", [1, 128, 129])
def test_the_queries_of_a_block_of_keys_are_found(count: int, device: str) -> None:
    """Against a search through all of them."""
    for T, block in ((1, 16), (300, 16), (7, 1)):
        _, (first, last) = draw(T, count * block, (1, 1), torch.float32, seed=T)
        bounds = torch.full((4, count), -1, dtype=torch.int32, device=device)
        grid = (-(-count // 128),)
        there = first.to(device), last.to(device)
        launch.kernels.find[grid](*there, bounds, T, T.bit_length(), count, BN=block, BLOCK=128)
        begin = torch.arange(count)[:, None] * block
        parts = (last <= begin, first < begin + block, last < begin + block, first <= begin)
        assert torch.equal(bounds.cpu().long(), torch.stack([part.sum(1) for part in parts]))


def test_heads_beyond_32_bits(tmp_path: Path, device: str) -> None:
    """Heads so far apart that the third begins behind element 2^31; nothing but their rows is ever touched."""
    if device != "cpu":
        pytest.skip("memory that is mapped without being there is the CPU's")
    apart, tensors, ranges = 1_200_000_000, *draw(3, 5, (3, 3), torch.bfloat16)
    whole = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * apart + 100, dtype=torch.bfloat16)
    far = []
    for x in tensors[:2]:
        far.append(whole.as_strided((3, 3, D), (D, apart, 1), 32 * len(far)).copy_(x))
    near = both_passes(tensors, ranges, "triton")
    for a, b in zip(both_passes([*far, *tensors[2:]], ranges, "triton"), near, strict=True):
        torch.testing.assert_close(a, b)  # delta is summed in another order


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128])
def test_heads_of_the_model(dim: int, device: str) -> None:
    """Eight queries to a key head, in bfloat16, several blocks of keys and of queries."""
    check(*draw(140, 190, (8, 1), torch.bfloat16, dim=dim), "triton", device)


def test_views_are_read_as_their_copies(device: str) -> None:
    """q, k and v of one projection, as a switch of layouts leaves them."""
    tensors, ranges = draw(40, 40, (2, 2), torch.float32)
    (dout, *inputs), ranges = [x.to(device) for x in tensors], [x.to(device) for x in ranges]
    together = torch.cat(inputs, dim=1).split(2, dim=1)
    found = both_passes([dout.mT.contiguous().mT, *together], ranges, "triton")
    for f, e in zip(found, both_passes([dout, *inputs], ranges, "triton"), strict=True):
        torch.testing.assert_close(f, e)  # delta is summed in another order


def test_the_ops_are_what_they_say(device: str) -> None:
    tensors, ranges = draw(5, 6, (2, 1), torch.float32)
    (dout, *inputs), ranges = [x.to(device) for x in tensors], [x.to(device) for x in ranges]
    torch.library.opcheck(launch._forward, (*inputs, *ranges))
    lse = torch.zeros(5, 2, device=device)
    torch.library.opcheck(launch._backward, (dout, *inputs, lse, lse, *ranges))


@pytest.mark.parametrize("backend", (*CPU_BODIES, "triton"))
def test_nothing_to_see(backend: str) -> None:
    for T, S in ((0, 5), (5, 0), (0, 0)):
        tensors, _ = draw(T, S, (4, 2), torch.float32)
        none = torch.zeros(T, dtype=torch.int32)
        out, lse, *grads = both_passes(tensors, [none, none], backend)
        assert out.shape == (T, 4, D) and lse.eq(-math.inf).all()
        assert all(x.count_nonzero() == 0 for x in (out, *grads))


@pytest.mark.parametrize("backend", CPU_BODIES)
def test_packed_documents_are_ranges(backend: str) -> None:
    bounds = [0, 3, 3, 50, 170]
    starts = torch.tensor(bounds[:-1]).repeat_interleave(torch.tensor(bounds).diff()).to(torch.int32)
    (_, q, k, v), _ = draw(170, 170, (4, 2), torch.float64)
    out, _ = ranged_attention(q, k, v, starts, torch.arange(1, 171, dtype=torch.int32), backend)
    expected = softmax_attention(q[None], k[None], v[None], torch.tensor(bounds), "reference")[0]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)


def test_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks cut for their scores' sake, and blocks between which queries see nothing."""
    monkeypatch.setattr(portable, "_SCORES_BYTES", 16 * 2 * 30 * 4)
    check(*draw(200, 90, (4, 2), torch.float64), "torch")
    tensors, (first, last) = draw(400, 90, (4, 2), torch.float64)
    last[130:300] = first[130:300] = first[130]
    last[300:], first[300:] = 90, first[130]
    check(tensors, [first, last], "torch")


@pytest.mark.parametrize("backend", CPU_BODIES)
@pytest.mark.parametrize("empty", [0, 40, 128])
def test_a_block_of_queries_some_of_which_see_nothing(backend: str, empty: int) -> None:
    """The others begin to see where a block of keys begins, at key 128."""
    tensors, _ = draw(50, 200, (4, 2), torch.float64)
    first, last = torch.full((50,), 128, dtype=torch.int32), torch.arange(130, 180, dtype=torch.int32)
    first[:10] = last[:10] = empty
    check(tensors, [first, last], backend)


@pytest.mark.parametrize("backend", CPU_BODIES)
def test_partial_results_merge(backend: str) -> None:
    """Keys in three pieces: outputs weighted by their log-sum-exps, gradients of the whole output added up."""
    tensors, (first, last) = draw(60, 50, (4, 2), torch.float64)
    dout, q, k, v = tensors
    whole = differentiated(tensors, [first, last])
    lse, delta = whole[1], (dout * whole[0]).sum(-1)
    out, dq = torch.zeros_like(q), torch.zeros_like(q)
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for a, b in itertools.pairwise((0, 11, 12, 50)):
        ranges = [x.clamp(a, b) - a for x in (first, last)]
        part, part_lse = ranged_attention(q, k[a:b], v[a:b], *ranges, backend)
        out += part * torch.where(part_lse == -math.inf, 0, torch.exp(part_lse - lse))[..., None]
        grads = ranged_attention_backward(dout, q, k[a:b], v[a:b], lse, delta, *ranges, backend)
        for total, part in zip((dq, dk[a:b], dv[a:b]), grads, strict=True):
            total += part
    for total, expected in zip((out, dq, dk, dv), (whole[0], *whole[2:]), strict=True):
        torch.testing.assert_close(total, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", CPU_BODIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_queries_that_see_nothing_elsewhere_need_no_delta(dtype: torch.dtype, backend: str) -> None:
    """It is summed here instead, so that a score alone in its row has no gradient at all."""
    tensors, (first, last) = draw(60, 50, (4, 2), dtype)
    dout, q, k, v = tensors
    exact = differentiated([x.double() for x in tensors], [first, last])
    plain = differentiated(tensors, [first, last])
    _, lse = ranged_attention(q, k, v, first, last, backend)
    whole = torch.arange(60) % 3 > 0
    delta = (dout.double() * exact[0]).sum(-1).to(lse.dtype).masked_fill(whole[:, None], torch.nan)
    found = ranged_attention_backward(dout, q, k, v, lse, delta, first, last, backend, whole=whole)
    for f, p, e in zip(found, plain[2:], exact[2:], strict=True):
        assert_within_noise(f.to(dtype), p, e)
    alone = torch.arange(50, dtype=torch.int32)
    dout, q, whole = dout[:50], q[:50], torch.ones(50, dtype=torch.bool)
    out, lse = ranged_attention(q, k, v, alone, alone + 1, backend)
    found = ranged_attention_backward(dout, q, k, v, lse, out.sum(-1), alone, alone + 1, backend, whole=whole)
    assert not found[0].any() and not found[1].any() and found[2].any()


@pytest.mark.parametrize("backend", (*CPU_BODIES, "triton"))
def test_scores_far_apart_stay_finite(backend: str) -> None:
    (dout, q, k, v), ranges = draw(60, 50, (4, 2), torch.float32)
    for x in both_passes([dout, q * 50, k * 50, v], ranges, backend):
        assert not x.isnan().any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: torch.zeros(5, 3, D)}, "multiple of Hkv"),
        ({0: torch.zeros(5, 4, D + 1)}, "multiple of Hkv"),
        ({2: torch.zeros(6, 2, D)}, "multiple of Hkv"),
        ({0: torch.zeros(5, 4, D, dtype=torch.float64)}, "one floating dtype"),
        ({3: torch.zeros(4, dtype=torch.int32)}, "first and last"),
        ({4: torch.zeros(5, dtype=torch.int64)}, "int32"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[int, torch.Tensor], message: str) -> None:
    (_, *tensors), ranges = draw(5, 7, (4, 2), torch.float32)
    inputs = dict(enumerate([*tensors, *ranges])) | changes
    with pytest.raises(ValueError, match=message):
        ranged_attention(*(inputs[index] for index in range(5)))


def test_a_backward_that_does_not_fit_is_refused() -> None:
    (dout, *tensors), ranges = draw(5, 7, (4, 2), torch.float32)
    lse = torch.zeros(5, 4)
    with pytest.raises(ValueError, match="dout as q"):
        ranged_attention_backward(dout.double(), *tensors, lse, lse, *ranges)
    with pytest.raises(ValueError, match="dout as q"):
        ranged_attention_backward(dout, *tensors, lse[:4], lse, *ranges)
    with pytest.raises(ValueError, match="in bool expected"):
        ranged_attention_backward(dout, *tensors, lse, lse, *ranges, whole=lse[:, 0])


@pytest.mark.gpu
def test_nothing_is_read_back(no_reading_back: Callable[[], AbstractContextManager[None]]) -> None:
    tensors, ranges = draw(300, 200, (4, 2), torch.bfloat16)
    inputs = [x.cuda() for x in tensors], [x.cuda() for x in ranges]
    both_passes(*inputs, "triton")
    with no_reading_back():
        both_passes(*inputs, "triton")
