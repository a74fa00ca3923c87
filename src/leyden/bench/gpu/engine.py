"""The rows of ``leyden bench gpu`` that are steps of the serving engine; they need pydantic, as all of models does."""

from dataclasses import replace

from leyden.bench.gpu.kernels import GpuBench, GpuRow
from leyden.bench.gpu.models import reader
from leyden.bench.gpu.result import OpRow
from leyden.core.roofline import Cost
from leyden.model import PAGE, HybridLM, ModelConfig, Pools, preset
from leyden.serve.graphs import CudaRecorder, DecodeGraphs
from leyden.serve.runner import Reading, Runner

_CONTEXT = 4 * PAGE


def engine_jobs(*, quick: bool) -> list[GpuRow]:
    """Steps of single tokens, op by op and recorded, and such a step with a part of a prompt in it."""
    names, counts = (("70m",), (3,)) if quick else (("160m", "1b"), (32, 256))
    small = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 128} if quick else {}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "rotary_dim": 16} if quick else {}
    jobs = []
    for name in names:
        config = preset(name, **small, **heads)
        for count in counts:
            jobs += [_decode_job(name, config, count, recorded=True), _decode_job(name, config, count, recorded=False)]
        jobs.append(_mixed_job(name, config, counts[0], PAGE if quick else 8 * PAGE))
    return jobs


def _decode_job(name: str, config: ModelConfig, count: int, *, recorded: bool) -> GpuRow:
    def measure(bench: GpuBench) -> OpRow:
        row = OpRow(
            "", unit="tokens/s", note=f"contexts of {_CONTEXT}; weights once, states twice, keys and values once"
        )
        if recorded and bench.device.type != "cuda":
            return replace(row, missing="needs a GPU")
        model = reader(config, bench.device)
        pools, decodes = _pools(model, count, 0), _decodes(count)
        graphs = DecodeGraphs(model, pools, CudaRecorder(bench.device)) if recorded else None
        runner = Runner(model, pools, graphs)
        if graphs is not None and graphs.run(decodes) is None:
            return replace(row, missing="this step cannot be recorded here; the log says why")
        seconds = bench.clock([lambda: runner.run(decodes, [])])
        floor, by = bench.speed.floor(_cost(model, pools, count))
        return replace(row, seconds=seconds, floor=floor, bound=by, value=count / seconds)

    how = "recorded" if recorded else "op by op"
    return GpuRow(f"engine step, {name}, {count} sequences, {how}", measure)


def _mixed_job(name: str, config: ModelConfig, count: int, length: int) -> GpuRow:
    def measure(bench: GpuBench) -> OpRow:
        model = reader(config, bench.device)
        pools, decodes = _pools(model, count, length), _decodes(count)
        pages = list(range(count * _CONTEXT // PAGE, pools.num_pages))
        prompt = Reading([1] * length, 0, pages, [count])
        runner = Runner(model, pools)
        together = bench.clock([lambda: runner.run(decodes, [prompt])])
        apart = bench.clock([lambda: (runner.run(decodes, []), runner.run([], [prompt]))])
        note = f"{(count + length) / together:,.0f} tokens/s"
        return OpRow("", seconds=together, value=apart / together, unit="x faster than apart", note=note)

    return GpuRow(f"engine step, {name}, {count} sequences and {length} tokens of a prompt", measure)


def _pools(model: HybridLM, count: int, length: int) -> Pools:
    """For ``count`` sequences of :data:`_CONTEXT` tokens, and a prompt; as if they were read."""
    num_pages = count * _CONTEXT // PAGE + length // PAGE
    pools = Pools(model.config, count + 1, num_pages, dtype=model.dtype, device=model.norm.weight.device)
    for memory in (*pools.slots.values(), *pools.pages.values()):
        memory.fill_(0.01)
    return pools


def _decodes(count: int) -> list[Reading]:
    each = _CONTEXT // PAGE
    return [Reading([1], _CONTEXT - 1, range(i * each, (i + 1) * each), [i, i]) for i in range(count)]


def _cost(model: HybridLM, pools: Pools, count: int) -> Cost:
    """Each weight read once, and twice the operations; states read and written; keys and values read."""
    weights = sum(p.numel() for p in model.parameters())
    states = sum(memory[:, :count].nbytes for memory in pools.slots.values())
    cached = sum(memory.nbytes for memory in pools.pages.values())
    embedding = 0 if model.config.tie_word_embeddings else model.embed_tokens.weight.numel()
    read = (weights - embedding) * model.norm.weight.new_empty((), dtype=model.dtype).element_size()
    return Cost(read + 2 * states + cached, 2.0 * (weights - embedding) * count)
