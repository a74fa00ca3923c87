"""The rows of ``leyden bench gpu`` for serving: decoding alone and with prefill, and attention over pages."""

from dataclasses import replace

import torch

from leyden import ops
from leyden.bench.gpu import floors as floors
from leyden.bench.gpu.clock import Call
from leyden.bench.gpu.kernels import GpuBench, GpuRow, held_to_floor, input_sets, random
from leyden.bench.gpu.result import OpRow

_NO_GPU = "needs a GPU"


def serving_jobs(*, quick: bool) -> list[GpuRow]:
    """In the order of the table."""
    return [_decode_job(quick, in_graph=False), _decode_job(quick, in_graph=True), _mixed_job(quick), _paged_job(quick)]


def _decode_job(quick: bool, *, in_graph: bool) -> GpuRow:
    sequences, heads, dim = (3, 2, 16) if quick else (256, 64, 128)

    def measure(bench: GpuBench) -> OpRow:
        goal = OpRow("", unit="of copy bandwidth", goal=0.8)
        if in_graph and bench.device.type != "cuda":
            return replace(goal, missing=_NO_GPU)
        cost = floors.lightning_decode(sequences, heads, dim, dim)
        slopes = ops.lightning_slopes(heads, 0, 80).to(bench.device)

        def bound(seed: int) -> Call:
            q, k, v = (random(bench.device, sequences, heads, dim, seed=3 * seed + i) for i in range(3))
            states = torch.zeros(sequences, heads, dim, dim, device=bench.device)
            generator = torch.Generator().manual_seed(seed)
            slots = torch.randperm(sequences, generator=generator).to(bench.device)

            def call() -> object:
                return ops.lightning_attention_decode(q, k, v, slopes, states, slots)

            return _captured(call) if in_graph else call

        seconds = bench.clock([bound(seed) for seed in input_sets(cost.bytes)])
        floor, by = bench.speed.floor(cost)
        share = cost.bytes / seconds / bench.speed.bytes_per_second
        return replace(goal, seconds=seconds, floor=floor, bound=by, value=share)

    return GpuRow(f"decode step{' in a CUDA graph' * in_graph}, {sequences} sequences, H{heads}", measure)


def _captured(call: Call) -> Call:
    """The same work as one CUDA graph: one launch by the host, however many kernels there are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is compiled or kept at the first call must not fall into the capture
        call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _mixed_job(quick: bool) -> GpuRow:
    """One batch of which some sequences decode and the others prefill, one after another."""
    decodes, prompts, length, heads, dim = (3, 1, 20, 2, 16) if quick else (256, 4, 8192, 64, 128)

    def measure(bench: GpuBench) -> OpRow:
        slopes = ops.lightning_slopes(heads, 0, 80).to(bench.device)
        slots = torch.arange(decodes + prompts, device=bench.device)
        bounds = torch.arange(0, prompts * length + 1, length, dtype=torch.int32, device=bench.device)

        def bound(seed: int) -> Call:
            tokens = decodes + prompts * length
            q, k, v = (random(bench.device, 1, tokens, heads, dim, seed=3 * seed + i) for i in range(3))
            states = torch.zeros(len(slots), heads, dim, dim, device=bench.device)
            n = decodes

            def call() -> object:
                first = ops.lightning_attention_decode(q[0, :n], k[0, :n], v[0, :n], slopes, states, slots[:n])
                second = ops.lightning_attention_prefill(
                    q[:, n:], k[:, n:], v[:, n:], slopes, states, slots[n:], bounds
                )
                return first, second

            return call

        reading = floors.lightning_decode(decodes, heads, dim, dim)
        prefill = floors.lightning_forward(prompts * length, heads, dim, dim, 2 * prompts)  # states read and written
        cost = reading + prefill
        return held_to_floor(bench, [bound(seed) for seed in range(2)], cost)  # a state pool alone is several caches

    return GpuRow(f"prefill and decode, {prompts} x {length} and {decodes}, H{heads}", measure)


def _paged_job(quick: bool) -> GpuRow:
    sequences, length, page, heads, shared, dim = (3, 32, 16, 4, 2, 16) if quick else (64, 16_384, 64, 64, 8, 128)

    def measure(bench: GpuBench) -> OpRow:
        cost = floors.elementwise(sequences * length * shared * dim, 2)  # each key and value read once
        pages = sequences * length // page

        def bound(seed: int) -> Call:
            q = random(bench.device, sequences, heads, dim, seed=3 * seed)
            keys, values = (random(bench.device, pages, page, shared, dim, seed=3 * seed + i) for i in (1, 2))
            order = torch.randperm(pages, generator=torch.Generator().manual_seed(seed))
            table = order.view(sequences, -1).to(bench.device, torch.int32)
            lengths = torch.full((sequences,), length, dtype=torch.int32, device=bench.device)
            return lambda: ops.paged_attention(q, keys, values, table, lengths)

        return held_to_floor(bench, [bound(seed) for seed in input_sets(cost.bytes)], cost)

    return GpuRow(f"paged attention, {sequences} sequences of {length}, H{heads} on {shared}", measure)
