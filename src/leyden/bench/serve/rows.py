"""The rows of ``leyden bench serve`` that need our engine alone, with the goals that they are held to."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from leyden.bench.result import ResultRow
from leyden.bench.serve.plan import ServePlan
from leyden.bench.work import SHORT
from leyden.bench.worker import Worker
from leyden.core.log import Bar
from leyden.model import ModelConfig, count_model

Figures = Sequence[float]


@dataclass(frozen=True)
class ServeBench:
    """What the rows measure with.

    Attributes:
        plan: the work.
        ours: a worker of :class:`leyden.bench.serve.ours.ServeOurs`.
        bar: moves on after each round.
    """

    plan: ServePlan
    ours: Worker
    bar: Bar

    def in_turn(self, name: str, repeats: int, *sides: Callable[[int], Figures]) -> list[list[float]]:
        """Medians of what each side returns, A B A B ..., after one unmeasured round; each is given the round."""
        rounds = []
        for number in range(repeats + 1):
            rounds.append([side(number) for side in sides])
            self.bar.advance(note=name)
        measured = rounds[1:]
        return [
            [statistics.median(figures) for figures in zip(*(one[i] for one in measured), strict=True)]
            for i in range(len(sides))
        ]


def stream_rows(bench: ServeBench) -> list[ResultRow]:
    """Many streams against one: at least 5x, or 60 % of what the measured rate of memory allows."""
    plan, call = bench.plan, bench.ours.call
    many, length = plan.streams, plan.prompt + plan.new // 2
    num_bytes = [step_bytes(plan.model, streams, length) for streams in (1, many)]
    (one,), (all_,), (rate,) = bench.in_turn(  # memory in turn with them: its rate is other machines' too
        "streams",
        plan.repeats,
        lambda seed: [call("step", plan.dtype, 1, plan.prompt, plan.new, seed)],
        lambda seed: [call("step", plan.dtype, many, plan.prompt, plan.new, seed)],
        lambda seed: [call("bytes_per_second", num_bytes[1])],
    )
    floor = many * rate / num_bytes[1]
    how = (
        f"a step moves {num_bytes[1] / 1e6:.0f} MB (weights of all experts met, states read and written, keys and "
        f"values) at {rate / 1e9:.1f} GB/s; one stream moves {num_bytes[0] / 1e6:.1f} MB, so that "
        f"{many * num_bytes[0] / num_bytes[1]:.1f}x is the limit where both come from memory"
    )
    against = ResultRow(
        work=f"decode, {many} streams against one, {SHORT[plan.dtype]}",
        unit="tokens/s",
        theirs=1 / one,
        ours=many / all_,
        ratio=many * one / all_,
        at_least=5,
        floor=floor,
        how=f"theirs is one stream of ours; {how}",
    )
    share = ResultRow(
        work=f"decode, {many} streams, of the memory floor",
        unit="share",
        theirs=None,
        ours=many / all_ / floor,
        judged="ours",
        at_least=0.6,
        how="the goal is this row's or the one's above",
    )
    return [against, share]


def step_bytes(config: ModelConfig, streams: int, length: int) -> float:
    """Bytes that one step must move: weights once, of experts those that are expected to be met; states both ways.

    Args:
        config: of a bfloat16 model.
        streams: how many decode.
        length: tokens that each one has read.
    """
    counted = count_model(config)
    D, experts = config.hidden_size, config.num_local_experts
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * D
    expert = 3 * D * config.intermediate_size
    met = experts * (1 - (1 - config.num_experts_per_tok / experts) ** streams) if experts else 0
    weights = counted.parameters - embedding - len(config.expert_layers()) * expert * (experts - met)
    return 2 * weights + streams * 2 * (counted.fixed_bytes(torch.bfloat16) + length * counted.key_values_per_token)


def chat_rows(bench: ServeBench) -> list[ResultRow]:
    """A conversation of many turns: time to first token no more than the new turn costs."""
    plan, call = bench.plan, bench.ours.call
    runs = []
    for seed in range(plan.long_repeats + 1):
        runs.append(call("chat", plan.dtype, plan.turns, plan.turn, seed))
        bench.bar.advance(note="chat")
    turns = list(zip(*runs[1:], strict=True))[1:]
    waits = [statistics.median(turn[0] for turn in of_runs) for of_runs in turns]
    alone = [statistics.median(turn[1] for turn in of_runs) for of_runs in turns]
    ratios = [wait / cost for wait, cost in zip(waits, alone, strict=True)]
    half = len(ratios) // 2
    early, late = statistics.median(waits[:half] or waits), statistics.median(waits[half:])
    said, answered = plan.turn
    unread = [turn[0][2] for turn in turns]
    cost = _at_most(
        1.25,
        f"chat of {plan.turns} turns, first token, by its new tokens alone",
        statistics.median(ratios[half:]),
        f"median over the second half of the turns; {said} tokens said and {answered} answered a turn, of which "
        f"{min(unread)} to {max(unread)} are unread; the same number of tokens as a first prompt is 1",
    )
    flat = _at_most(
        1.15,
        "chat, first token: later half of the turns by the earlier",
        statistics.median(ratios[half:]) / statistics.median(ratios[:half] or ratios),
        f"{1000 * early:.1f} ms and {1000 * late:.1f} ms, each divided by what its new tokens alone take",
    )
    return [cost, flat]


def context_rows(bench: ServeBench) -> list[ResultRow]:
    """A decoded token behind a long context against one behind a short: lightning layers flat, softmax by its keys."""
    plan, call = bench.plan, bench.ours.call
    short, long = plan.contexts
    kinds = (plan.dtype, f"{plan.dtype}-lightning", f"{plan.dtype}-softmax")
    steps = {}
    for kind in kinds:
        steps[kind] = bench.in_turn(
            f"context {kind}",
            plan.long_repeats,
            # Greedy texts of a random model go in circles, and what they meet of the experts stays in the cache.
            *(
                lambda seed, k=kind, t=length: [call("step", k, 1, t, plan.steps, seed, 1.0)]
                for length in (short, long)
            ),
        )
    (whole_short,), (whole_long,) = steps[plan.dtype]
    (flat_short,), (flat_long,) = steps[f"{plan.dtype}-lightning"]
    (one_short,), (one_long,) = steps[f"{plan.dtype}-softmax"]
    grown = one_long - one_short
    num_softmax = plan.model.layer_types.count("full_attention")
    key_values = 2 * (long - short) * count_model(plan.model).key_values_per_token
    rate = call("bytes_per_second", key_values)
    return [
        _at_most(
            1.1,
            f"decode behind {long} by {short} tokens, lightning layers",
            flat_long / flat_short,
            f"a model of {plan.model.num_hidden_layers} lightning layers, a step of "
            f"{1000 * flat_short:.2f} and {1000 * flat_long:.2f} ms; tokens are drawn at temperature 1",
        ),
        _at_most(
            1.15,
            f"decode behind {long} by {short} tokens, growth by softmax's",
            (whole_long - whole_short) / (num_softmax * grown) if grown > 0 else float("inf"),
            f"a step of the whole model takes {1000 * whole_short:.2f} ms behind {short} tokens and "
            f"{1000 * whole_long:.2f} behind {long}; a model of one softmax layer grows by {1000 * grown:.2f} ms "
            f"({num_softmax * grown / whole_long:.0%} of the whole), and its keys and values ({key_values / 1e6:.1f} "
            f"MB) take {1000 * key_values / rate:.2f} ms to read at {rate / 1e9:.1f} GB/s",
        ),
    ]


def int8_rows(bench: ServeBench) -> list[ResultRow]:
    """8-bit weights: at most 60 % of bfloat16's memory (52 % with embedding and head too), and decoding no slower."""
    plan, call, short = bench.plan, bench.ours.call, SHORT[bench.plan.dtype]
    whole = call("weight_bytes", plan.dtype)
    rows = []
    for kind, goal, name in (("int8", 0.6, f"embedding and head in {short}"), ("int8 whole", 0.52, "all in int8")):
        ours = call("weight_bytes", kind)
        how = f"{ours / 1e6:.1f} MB against {whole / 1e6:.1f} MB"
        rows.append(_at_most(goal, f"int8 weights by {short}'s, {name}", ours / whole, how, unit="share"))
    for streams in (1, plan.streams):
        (whole,), (int8,) = bench.in_turn(
            f"int8, {streams}",
            plan.long_repeats,
            *(
                lambda seed, k=kind, n=streams: [call("step", k, n, plan.prompt, plan.new, seed)]
                for kind in (plan.dtype, "int8")
            ),
        )
        rows.append(
            ResultRow(
                work=f"decode in int8, {streams} stream{'s' * (streams > 1)}",
                unit="tokens/s",
                theirs=streams / whole,
                ours=streams / int8,
                ratio=whole / int8,
                at_least=1,
                how=f"theirs is ours in {short}",
            )
        )
    return rows


def _at_most(goal: float, work: str, ours: float, how: str, *, unit: str = "x") -> ResultRow:
    """A figure of ours that must not be above ``goal``, and that nothing is compared with."""
    return ResultRow(work, unit, theirs=None, ours=ours, judged="ours", at_least=goal, at_most=True, how=how)
