"""The rows of ``leyden bench cpu``, with the goals that they are held to."""

from dataclasses import replace

from leyden.bench.ab import ABBenchmark
from leyden.bench.cpu.plan import CpuPlan
from leyden.bench.result import ResultRow
from leyden.bench.work import SHORT
from leyden.bench.worker import Worker
from leyden.model import count_model, prefill_flops


def train_rows(benchmark: ABBenchmark, plan: CpuPlan, peak: float) -> tuple[list[ResultRow], str]:
    """Training steps: at least 2.5x (4x1024) and 3x (1x4096), aim 4x and 40 % of the matmul peak.

    Args:
        benchmark: the sides.
        plan: the lengths.
        peak: measured FLOPs per second of a large matrix product in the plan's dtype.

    Returns:
        The rows, and theirs' fastest variant of the first.
    """
    rows: list[ResultRow] = []
    first = ""
    for (batch, length), at_least in zip(plan.train, (2.5, 3.0), strict=True):
        choice = benchmark.fastest("train", lambda variant, b=batch, t=length: ("train", variant, b, t))
        theirs, ours = benchmark.medians(
            ("train", choice.variant, batch, length), ("train", batch, length, plan.dtype), plan.repeats
        )
        tokens, name = batch * length, f"{batch}x{length}"
        flops = count_model(plan.model).training_flops_per_token(length)
        rows.append(
            ResultRow(
                work=f"training step {name}, {SHORT[plan.dtype]}",
                unit="tokens/s",
                theirs=tokens / theirs,
                ours=tokens / ours,
                ratio=theirs / ours,
                at_least=at_least,
                aim=4,
                floor=peak / flops,
                how=f"{choice}; ours holds float32 masters and moments; both run fused AdamW, the auxiliary loss "
                "and clipping",
            )
        )
        rows.append(
            ResultRow(
                work=f"training step {name}, of matmul peak",
                unit="share",
                theirs=flops * tokens / theirs / peak,
                ours=flops * tokens / ours / peak,
                judged="ours",
                aim=0.4,
            )
        )
        first = first or choice.variant
    return rows, first


def memory_row(theirs: Worker, ours: Worker, plan: CpuPlan, variant: str) -> ResultRow:
    """Peak memory of training, model included: no more than theirs, aim half.

    Args:
        theirs, ours: fresh workers.
        plan: the shape; the first of its training shapes is taken.
        variant: theirs'.
    """
    shape = plan.train[0]
    their_bytes = theirs.call("train_bytes", variant, *shape, 3)
    our_bytes = ours.call("train_bytes", *shape, 3, plan.dtype)
    return ResultRow(
        work=f"training peak memory {shape[0]}x{shape[1]}",
        unit="MB",
        theirs=their_bytes / 1e6,
        ours=our_bytes / 1e6,
        ratio=their_bytes / our_bytes,
        at_least=1,
        aim=2,
        how=f"model, optimizer and activations, above the process before the model; theirs in '{variant}'",
    )


def prefill_rows(benchmark: ABBenchmark, plan: CpuPlan, peak: float) -> list[ResultRow]:
    """Reading a prompt: at least 2x, aim 3x."""
    choice = benchmark.fastest("prefill", lambda variant: ("prefill", variant, plan.dtype, plan.prefill[0]))
    rows = []
    for length in plan.prefill:
        repeats = plan.repeats if length == plan.prefill[0] else plan.long_repeats
        theirs, ours = benchmark.medians(
            ("prefill", choice.variant, plan.dtype, length), ("prefill", plan.dtype, length), repeats
        )
        rows.append(
            ResultRow(
                work=f"prefill 1x{length}, {SHORT[plan.dtype]}",
                unit="tokens/s",
                theirs=length / theirs,
                ours=length / ours,
                ratio=theirs / ours,
                at_least=2,
                aim=3,
                floor=peak * length / prefill_flops(plan.model, length),
                how=f"{choice}; ours computes of the last layer what the cache and the last token need",
            )
        )
    return rows


def decode_rows(benchmark: ABBenchmark, plan: CpuPlan) -> list[ResultRow]:
    """Greedy decoding of one stream, the same dtype on both sides: at least 4x, aim 8x."""
    prompt, new = plan.decode
    rows = []
    for dtype in dict.fromkeys(("float32", plan.dtype)):
        choice = benchmark.fastest("decode", lambda variant, dtype=dtype: ("decode", variant, dtype, prompt, new))
        theirs, ours = benchmark.medians(
            ("decode", choice.variant, dtype, prompt, new), ("decode", dtype, prompt, new), plan.repeats
        )
        rows.append(
            ResultRow(
                work=f"decode {new} after {prompt}, {SHORT[dtype]}",
                unit="tokens/s",
                theirs=new / theirs,
                ours=new / ours,
                ratio=theirs / ours,
                at_least=4,
                aim=8,
                how=f"{choice}, by generate(); ours by Engine.generate",
            )
        )
    return rows


def op_rows(benchmark: ABBenchmark, plan: CpuPlan) -> list[ResultRow]:
    """The lightning op, forward and backward: 4x softmax attention, and a flat cost per token."""
    shape = plan.attention
    theirs, ours = benchmark.medians(
        ("attention", shape, plan.dtype), ("attention", shape, plan.dtype), plan.long_repeats
    )
    against = ResultRow(
        work=f"attention op, {shape.tokens} tokens, {SHORT[plan.dtype]}",
        unit="tokens/s",
        theirs=shape.tokens / theirs,
        ours=shape.tokens / ours,
        ratio=theirs / ours,
        at_least=4,
        how=f"forward and backward, {shape.heads} heads of {shape.head_dim}; theirs is "
        "scaled_dot_product_attention(is_causal=True)",
    )
    # Every length as often as makes the tokens of the longest: what disturbs a moment then weighs alike in all of them.
    often = {tokens: max(plan.flat) // tokens for tokens in plan.flat}
    lengths = [tokens for tokens, times in often.items() for _ in range(times)]
    costs = benchmark.alone(
        [("attention", replace(shape, tokens=tokens), plan.dtype) for tokens in lengths], plan.long_repeats
    )
    seconds = dict.fromkeys(often, 0.0)
    for tokens, cost in zip(lengths, costs, strict=True):
        seconds[tokens] += cost
    per_token = {tokens: seconds[tokens] / (times * tokens) for tokens, times in often.items()}
    listed = ", ".join(f"{tokens}: {1e9 * cost:.0f}" for tokens, cost in per_token.items())
    flat = ResultRow(
        work=f"op at {plan.flat[0]} to {plan.flat[-1]}, dearest token",
        unit="x cheapest",
        theirs=None,
        ours=max(per_token.values()) / min(per_token.values()),
        judged="ours",
        aim=1.15,
        at_most=True,
        how=f"nanoseconds a token at {listed}",
    )
    return [against, flat]
