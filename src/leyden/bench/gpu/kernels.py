"""The rows of ``leyden bench gpu`` that need torch and triton alone: each op, its inputs, its floor and its goal."""

import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from leyden import ops
from leyden.bench.gpu import floors as floors
from leyden.bench.gpu.clock import Call, Clock
from leyden.bench.gpu.result import OpRow
from leyden.core.roofline import Cost, Speed

_CACHE_BYTES = 256 * 2**20
"""Inputs of one measurement take turns until they are so many bytes, several times a GPU's cache."""


@dataclass(frozen=True)
class GpuBench:
    """Where and how rows are measured."""

    device: torch.device
    clock: Clock
    speed: Speed


@dataclass(frozen=True)
class GpuRow:
    """One row: its name, by which ``--only`` chooses, and what measures it."""

    work: str
    measure: Callable[[GpuBench], OpRow]


@dataclass(frozen=True)
class Tokens:
    """The tokens of one lightning attention call; ``documents`` of a packed row where it is not 0."""

    name: str
    batch: int
    length: int
    heads: int
    dim: int = 128
    documents: int = 0

    def bounds(self, device: torch.device) -> torch.Tensor | None:
        """[documents + 1] int32: ragged lengths, the same at every call; None where nothing is packed."""
        if not self.documents:
            return None
        generator = torch.Generator().manual_seed(0)
        inner = torch.randperm(self.length - 1, generator=generator)[: self.documents - 1].add(1).sort().values
        return F.pad(F.pad(inner, (1, 0)), (0, 1), value=self.length).to(device, torch.int32)

    @property
    def size(self) -> tuple[int, int, int, int, int]:
        """Tokens, heads, K, V, and how many states there are: what floors are computed from."""
        return self.batch * self.length, self.heads, self.dim, self.dim, self.documents or self.batch


def random(device: torch.device, *shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Standard normal numbers, the same for the same seed on the same device."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, device=device, generator=generator, dtype=dtype)


def input_sets(num_bytes: float) -> range:
    """The seeds of as many input sets of ``num_bytes`` as no cache holds; from 2 to 32."""
    return range(min(32, max(2, math.ceil(_CACHE_BYTES / max(num_bytes, 1)))))


def kernel_jobs(*, quick: bool) -> list[GpuRow]:
    """Every row of the ops but those of serving, in the order of the table."""
    return [
        *_lightning_jobs(quick),
        *(_gated_job(quick, backward=backward) for backward in (False, True)),
        *_against_softmax_jobs(quick),
        *_surrounding_jobs(quick),
    ]


def _lightning_jobs(quick: bool) -> list[GpuRow]:
    cases = [
        Tokens("B1 T8192 H64", 1, 8192, 64),
        Tokens("B8 T2048 H64", 8, 2048, 64),
        Tokens("B1 T131072 H64", 1, 131_072, 64),
        Tokens("packed ragged 64 documents, T65536 H64", 1, 65_536, 64, documents=64),
    ]
    if quick:
        cases = [Tokens("B1 T64 H2", 1, 64, 2, 16), Tokens("packed ragged 4 documents, T64 H2", 1, 64, 2, 16, 4)]
    jobs = [GpuRow(f"lightning forward, {case.name}", _forward(case)) for case in cases]
    jobs += [GpuRow(f"lightning forward and backward, {case.name}", _training(case)) for case in cases]
    return jobs + [GpuRow(f"against chunk_simple_gla, {case.name}", _against_fla(case)) for case in cases]


def _forward(case: Tokens) -> Callable[[GpuBench], OpRow]:
    def measure(bench: GpuBench) -> OpRow:
        cost = floors.lightning_forward(*case.size)
        slopes, bounds = _slopes(case, bench), case.bounds(bench.device)

        def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: torch.Tensor) -> object:
            with torch.no_grad():
                return ops.lightning_attention(q, k, v, slopes, cu_seqlens=bounds)

        return held_to_floor(bench, _calls(case, bench, call), cost, goal=1.5)

    return measure


def _training(case: Tokens) -> Callable[[GpuBench], OpRow]:
    def measure(bench: GpuBench) -> OpRow:
        return held_to_floor(bench, _lightning(case, bench), floors.lightning_training(*case.size), goal=2.0)

    return measure


def _lightning(case: Tokens, bench: GpuBench) -> list[Call]:
    """Our op, forward and backward."""
    slopes, bounds = _slopes(case, bench), case.bounds(bench.device)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor) -> object:
        out, _ = ops.lightning_attention(q, k, v, slopes, cu_seqlens=bounds)
        return torch.autograd.grad(out, (q, k, v), dout)

    return _calls(case, bench, call)


def _gated_job(quick: bool, *, backward: bool) -> GpuRow:
    """Gated linear attention, whose decays follow from the data; without a goal."""
    case = Tokens("B1 T64 H2", 1, 64, 2, 16) if quick else Tokens("B1 T8192 H64", 1, 8192, 64)

    def measure(bench: GpuBench) -> OpRow:
        cost = (floors.gated_training if backward else floors.gated_forward)(*case.size)
        shape = (case.batch, case.length, case.heads, case.dim)
        decay = random(bench.device, *shape, seed=9, dtype=torch.float32).square().neg().requires_grad_()

        def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor) -> object:
            with torch.set_grad_enabled(backward):
                out, _ = ops.gated_linear_attention(q, k, v, decay)
                return torch.autograd.grad(out, (q, k, v, decay), dout) if backward else out

        return held_to_floor(bench, _calls(case, bench, call), cost)

    return GpuRow(f"gated linear attention forward{' and backward' * backward}, {case.name}", measure)


def _against_fla(case: Tokens) -> Callable[[GpuBench], OpRow]:
    def measure(bench: GpuBench) -> OpRow:
        goal = OpRow("", unit="x faster", goal=2.0)
        if importlib.util.find_spec("fla") is None:
            return replace(goal, missing="flash-linear-attention is not installed")
        from fla.ops.simple_gla import chunk_simple_gla  # pyright: ignore[reportMissingImports]

        slopes, bounds = _slopes(case, bench), case.bounds(bench.device)

        def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor) -> object:
            out, _ = chunk_simple_gla(q, k, v, g_gamma=-slopes, scale=1.0, output_final_state=True, cu_seqlens=bounds)
            return torch.autograd.grad(out, (q, k, v), dout)

        return _faster(bench, case, bench.clock(_calls(case, bench, theirs)), goal)

    return measure


def _against_softmax_jobs(quick: bool) -> list[GpuRow]:
    lengths = (32, 64) if quick else tuple(2**power for power in range(11, 18))
    heads, dim, tokens = (2, 16, 64) if quick else (64, 128, 16_384)
    cases = [Tokens(f"T{length} H{heads}", max(1, tokens // length), length, heads, dim) for length in lengths]
    return [GpuRow(f"against causal softmax, {case.name}", _against_softmax(case)) for case in cases]


def _against_softmax(case: Tokens) -> Callable[[GpuBench], OpRow]:
    def measure(bench: GpuBench) -> OpRow:
        seconds = {}
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):

            def theirs(*tensors: torch.Tensor, backend: SDPBackend = backend) -> object:
                q, k, v, dout = (x.transpose(1, 2) for x in tensors)
                with sdpa_kernel(backend):
                    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                return torch.autograd.grad(out, tensors[:3], dout)

            try:
                with warnings.catch_warnings():  # a body that cannot run says why before it raises
                    warnings.simplefilter("ignore")
                    seconds[backend.name] = bench.clock(_calls(case, bench, theirs))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                continue
        goal = OpRow("", unit="x faster", goal=1.0)
        if not seconds:
            return replace(goal, missing="no body of scaled_dot_product_attention runs here")
        fastest = min(seconds, key=seconds.__getitem__)
        tried = ", ".join(f"{name} {1000 * spent:.3g} ms" for name, spent in seconds.items())
        note = f"B{case.batch}, forward and backward; softmax: {tried}"
        return _faster(bench, case, seconds[fastest], replace(goal, note=note))

    return measure


def _faster(bench: GpuBench, case: Tokens, theirs: float, row: OpRow) -> OpRow:
    """``row`` with our time and how many times ``theirs`` it is."""
    seconds = bench.clock(_lightning(case, bench))
    floor, bound = bench.speed.floor(floors.lightning_training(*case.size))
    return replace(row, seconds=seconds, floor=floor, bound=bound, value=theirs / seconds)


def _slopes(case: Tokens, bench: GpuBench) -> torch.Tensor:
    return ops.lightning_slopes(case.heads, 0, 80).to(bench.device)


def _calls(case: Tokens, bench: GpuBench, call: Callable[..., object]) -> list[Call]:
    """``call`` of q, k, v and the output's gradient, for each input set."""
    shape = (case.batch, case.length, case.heads, case.dim)

    def bound(seed: int) -> Call:
        q, k, v, dout = (random(bench.device, *shape, seed=4 * seed + i) for i in range(4))
        for x in (q, k, v):
            x.requires_grad_()
        return lambda: call(q, k, v, dout)

    return [bound(seed) for seed in input_sets(floors.lightning_forward(*case.size).bytes)]


def _surrounding_jobs(quick: bool) -> list[GpuRow]:
    """What stands around attention, without goals: how far each is from its floor."""
    n, d, heads, width, hidden, experts, vocab = (
        (8, 32, 2, 32, 64, 4, 64) if quick else (16_384, 6144, 64, 2048, 4096, 8, 65_536)
    )
    return [
        _silu_split_job(n, heads, 16 if quick else 128),
        _norm_job("rms_norm", n, d),
        _norm_job("gated_rms_norm", n, d),
        _norm_job("residual_rms_norm", n, d),
        _rotary_job(n, heads, 16 if quick else 128),
        _routing_job(4 * n, 4 * experts),
        _experts_job(n, width, hidden, experts, backward=False),
        _experts_job(n, width, hidden, experts, backward=True),
        _cross_entropy_job(n // 2, width, vocab),
    ]


def _norm_job(name: str, n: int, d: int) -> GpuRow:
    def measure(bench: GpuBench) -> OpRow:
        # Forward: one or two inputs read, one output written. Backward: these and dout read, a gradient each written.
        cost = floors.elementwise(n * d, 5 if name == "rms_norm" else 8)
        weight = torch.ones(d, device=bench.device, requires_grad=True)

        def bound(seed: int) -> Call:
            x, second, dout = (random(bench.device, n, d, seed=3 * seed + i) for i in range(3))
            inputs = (x.requires_grad_(), second.requires_grad_(), weight)
            if name == "rms_norm":
                return lambda: torch.autograd.grad(ops.rms_norm(x, weight, 1e-5), (x, weight), dout)
            if name == "gated_rms_norm":
                return lambda: torch.autograd.grad(ops.gated_rms_norm(*inputs, 1e-5), inputs, dout)
            return lambda: torch.autograd.grad(ops.residual_rms_norm(*inputs, 3.5, 1.0, 1e-5), inputs, dout)

        return held_to_floor(bench, [bound(seed) for seed in input_sets(cost.bytes)], cost)

    return GpuRow(f"{name} forward and backward, {n} x {d}", measure)


def _silu_split_job(n: int, heads: int, dim: int) -> GpuRow:
    def measure(bench: GpuBench) -> OpRow:
        cost = floors.elementwise(n * heads * 3 * dim, 5)  # read, written; read again with a gradient, one written

        def bound(seed: int) -> Call:
            qkv = random(bench.device, 1, n, heads, 3 * dim, seed=seed).requires_grad_()
            grads = [random(bench.device, 1, n, heads, dim, seed=3 * seed + i) for i in range(3)]
            return lambda: torch.autograd.grad(ops.silu_split(qkv), qkv, grads)

        return held_to_floor(bench, [bound(seed) for seed in input_sets(cost.bytes)], cost)

    return GpuRow(f"silu_split forward and backward, T{n} H{heads}", measure)


def _rotary_job(n: int, heads: int, dim: int) -> GpuRow:
    def measure(bench: GpuBench) -> OpRow:
        cost = floors.elementwise(n * heads * dim, 4)  # read and written, both ways
        cos, sin = ops.rotary_angles(
            torch.arange(n, device=bench.device), ops.rotary_frequencies(dim // 2, 10_000.0, bench.device)
        )

        def bound(seed: int) -> Call:
            x, dout = (random(bench.device, 1, n, heads, dim, seed=2 * seed + i) for i in range(2))
            x.requires_grad_()
            return lambda: torch.autograd.grad(ops.apply_rotary(x, cos, sin), x, dout)

        return held_to_floor(bench, [bound(seed) for seed in input_sets(cost.bytes)], cost)

    return GpuRow(f"rotary forward and backward, T{n} H{heads}, half of {dim}", measure)


def _routing_job(n: int, experts: int) -> GpuRow:
    def measure(bench: GpuBench) -> OpRow:
        cost = floors.routing(n, experts, 2)

        def bound(seed: int) -> Call:
            logits = random(bench.device, n, experts, seed=seed, dtype=torch.float32)
            return lambda: ops.route(logits, 2)

        return held_to_floor(bench, [bound(seed) for seed in input_sets(cost.bytes)], cost)

    return GpuRow(f"routing, {n} tokens to 2 of {experts}", measure)


def _experts_job(n: int, width: int, hidden: int, experts: int, *, backward: bool) -> GpuRow:
    def measure(bench: GpuBench) -> OpRow:
        cost = floors.experts(n, width, hidden, experts, 2, backward=backward)
        scale = width**-0.5
        gate_up = random(bench.device, experts, 2 * hidden, width, seed=1).mul_(scale).requires_grad_(backward)
        down = random(bench.device, experts, width, hidden, seed=2).mul_(scale).requires_grad_(backward)

        def bound(seed: int) -> Call:
            x, dout = (random(bench.device, n, width, seed=2 * seed + i) for i in range(2))
            x.requires_grad_(backward)
            routed = ops.route(random(bench.device, n, experts, seed=seed, dtype=torch.float32), 2)

            def call() -> object:
                out = ops.swiglu_experts(x, gate_up, down, routed.experts, routed.weights)
                return torch.autograd.grad(out, (x, gate_up, down), dout) if backward else out

            return call

        return held_to_floor(bench, [bound(seed) for seed in input_sets(cost.bytes)], cost)

    both = " and backward" if backward else ""
    return GpuRow(f"experts forward{both}, {n} tokens to 2 of {experts}, {width} x {hidden}", measure)


def _cross_entropy_job(n: int, width: int, vocab: int) -> GpuRow:
    def measure(bench: GpuBench) -> OpRow:
        cost = floors.cross_entropy_training(n, width, vocab)
        weight = random(bench.device, vocab, width, seed=1).mul_(width**-0.5).requires_grad_()

        def bound(seed: int) -> Call:
            hidden = random(bench.device, n, width, seed=seed).requires_grad_()
            labels = torch.arange(n, device=bench.device) % vocab
            return lambda: torch.autograd.grad(ops.linear_cross_entropy(hidden, weight, labels)[0], (hidden, weight))

        return held_to_floor(bench, [bound(seed) for seed in input_sets(cost.bytes)], cost)

    return GpuRow(f"cross-entropy forward and backward, {n} x {width}, vocabulary {vocab}", measure)


def held_to_floor(bench: GpuBench, calls: list[Call], cost: Cost, goal: float | None = None) -> OpRow:
    """The calls' time as a multiple of what ``cost`` takes at least."""
    seconds = bench.clock(calls)
    floor, bound = bench.speed.floor(cost)
    return OpRow("", seconds, floor, bound, value=seconds / floor, goal=goal, at_most=True)
