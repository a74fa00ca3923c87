"""The rows of ``leyden bench serve`` beside other software: transformers' generate and server, llama.cpp."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leyden.bench.result import ResultRow
from leyden.bench.serve.http import ServerProcess, rate_and_wait
from leyden.bench.serve.llama import LlamaWorker
from leyden.bench.serve.plan import prompts
from leyden.bench.serve.rows import ServeBench
from leyden.bench.work import SHORT
from leyden.bench.worker import Worker


def generate_rows(bench: ServeBench, theirs: Worker) -> list[ResultRow]:
    """A batch by transformers' generate: at least 4x the tokens/s, and a lower time to first token."""
    plan, many, new = bench.plan, bench.plan.streams, bench.plan.new
    work = (many, plan.prompt, new)
    seconds = {}
    for variant in theirs.call("variants"):
        theirs.call("generate", variant, plan.dtype, 1, plan.prompt, 2, 0)
        seconds[variant] = theirs.call("generate", variant, plan.dtype, *work, 0)[0]
        bench.bar.advance(note=f"generate {variant}")
    fastest = min(seconds, key=seconds.__getitem__)
    slower = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items() if name != fastest)
    (their_whole, their_first), (our_whole, our_first) = bench.in_turn(
        "generate",
        plan.long_repeats,
        lambda seed: theirs.call("generate", fastest, plan.dtype, *work, seed),
        lambda seed: bench.ours.call("generate", plan.dtype, *work, seed),
    )
    name = f"{many} streams, {plan.prompt} tokens in, {new} out"
    return [
        ResultRow(
            work=f"{name}, {SHORT[bench.plan.dtype]}",
            unit="tokens/s",
            theirs=many * new / their_whole,
            ours=many * new / our_whole,
            ratio=their_whole / our_whole,
            at_least=4,
            how=f"from sending all prompts to the last token; theirs is generate() over one batch with '{fastest}' "
            f"experts, the fastest (tried: {slower})",
        ),
        _first_token(name, their_first, our_first, "of the median stream; theirs come together"),
    ]


def server_rows(bench: ServeBench, theirs: ServerProcess, ours: ServerProcess, texts: Sequence[str]) -> list[ResultRow]:
    """The same requests over HTTP, by the same clients: at least 4x the tokens/s, and a lower time to first token.

    Args:
        bench: the plan.
        theirs: ``transformers serve``.
        ours: ``leyden serve``.
        texts: at least ``http_streams`` for each of the rounds; none is sent twice, so that no cache helps.
    """
    plan, many = bench.plan, bench.plan.http_streams

    def of(server: ServerProcess, number: int) -> tuple[float, float]:
        return rate_and_wait(server.ask(list(texts[number * many : (number + 1) * many]), plan.new))

    (their_rate, their_first), (our_rate, our_first) = bench.in_turn(
        "servers", plan.long_repeats, lambda number: of(theirs, number), lambda number: of(ours, number)
    )
    name = f"HTTP, {many} streams, {plan.new} tokens out"
    return [
        ResultRow(
            work=f"{name}, {SHORT[bench.plan.dtype]}",
            unit="tokens/s",
            theirs=their_rate,
            ours=our_rate,
            ratio=our_rate / their_rate,
            at_least=4,
            how="/v1/completions, streamed, from sending all requests to the last token; theirs is transformers serve, "
            "which runs one request after another (its continuous batching refuses layers of linear attention)",
        ),
        _first_token(name, their_first, our_first, "of the median stream"),
    ]


def _first_token(name: str, theirs: float, ours: float, how: str) -> ResultRow:
    """Until the first token, of both sides in seconds: no later."""
    work = f"{name}, first token"
    return ResultRow(work, "ms", 1000 * theirs, 1000 * ours, ratio=theirs / ours, at_least=1, how=how)


@dataclass(frozen=True)
class Llama:
    """llama.cpp's side: its process, and the model's files by the dtype of their matrices."""

    worker: LlamaWorker
    files: dict[str, str]


def llama_rows(bench: ServeBench, llama: Llama) -> list[ResultRow]:
    """One stream by llama.cpp: decoding at least equal, prefill at least 3x."""
    plan = bench.plan
    lengths, prompt, new = plan.llama
    rows = []
    for dtype in dict.fromkeys((plan.dtype, "float32")):
        for length in lengths if dtype == plan.dtype else lengths[:1]:
            one = _one_stream(bench, llama, plan.long_repeats, "prefill", dtype, length)
            rows.append(
                ResultRow(
                    work=f"llama.cpp, prefill 1x{length}, {SHORT[dtype]}",
                    unit="tokens/s",
                    theirs=length / one.theirs,
                    ours=length / one.ours,
                    ratio=one.theirs / one.ours,
                    at_least=3,
                    how=f"theirs in graphs of '{one.fastest}' tokens, the fastest (tried: {one.slower}); ours by the "
                    "engine",
                )
            )
        one = _one_stream(bench, llama, plan.repeats, "decode", dtype, prompt, new)
        rows.append(
            ResultRow(
                work=f"llama.cpp, decode {new} after {prompt}, {SHORT[dtype]}",
                unit="tokens/s",
                theirs=new / one.theirs,
                ours=new / one.ours,
                ratio=one.theirs / one.ours,
                at_least=1,
                how=f"theirs by llama_decode with '{one.fastest}' (tried: {one.slower}); ours by the engine",
            )
        )
    return rows


@dataclass(frozen=True)
class _OneStream:
    """Seconds that both sides took, llama.cpp in the variant that is its fastest; and the others with theirs."""

    theirs: float
    ours: float
    fastest: str
    slower: str


def _one_stream(
    bench: ServeBench, llama: Llama, repeats: int, work: str, dtype: str, length: int, *new: int
) -> _OneStream:
    """Both sides' ``work`` ("prefill" or "decode") on prompts of ``length`` tokens, with ``new`` ones after them."""
    file = llama.files[dtype]

    def text(seed: int) -> list[int]:
        return prompts(1, length, bench.plan.model.vocab_size, seed)[0]

    fastest, slower = _fastest(bench, llama, work, file, text(0), *new)
    (theirs,), (ours,) = bench.in_turn(
        f"llama.cpp, {work} {length}",
        repeats,
        lambda seed: [llama.worker.call(work, fastest, file, text(seed), *new)],
        lambda seed: [bench.ours.call(work, dtype, text(seed), *new)],
    )
    return _OneStream(theirs, ours, fastest, slower)


def _fastest(
    bench: ServeBench, llama: Llama, work: str, file: str, text: list[int], *arguments: int
) -> tuple[str, str]:
    """llama.cpp's soonest variant, of two tries the second; and the others with their milliseconds."""
    seconds = {}
    for variant in llama.worker.call("variants", work):
        llama.worker.call(work, variant, file, text, *arguments)
        seconds[variant] = llama.worker.call(work, variant, file, text, *arguments)
    bench.bar.advance(note=f"llama.cpp's fastest way to {work}")
    fastest = min(seconds, key=seconds.__getitem__)
    return fastest, ", ".join(f"{v} {1000 * s:.0f} ms" for v, s in seconds.items() if v != fastest)


def llama_difference(bench: ServeBench, llama: Llama) -> float:
    """Largest difference of both sides' float32 logits behind 600 random tokens, as a share of the largest."""
    tokens = prompts(1, 600, bench.plan.model.vocab_size, 0)[0]
    expected = np.array(llama.worker.call("logits", "128", llama.files["float32"], tokens))
    found = bench.ours.call("logits", tokens)[-1]
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def greedy_agreement(bench: ServeBench, llama: Llama) -> float:
    """Share of greedy tokens that both sides give before the first in which they differ; of 8 prompts."""
    vocabulary = bench.plan.model.vocab_size
    _, prompt, new = bench.plan.llama
    shares = []
    for text in prompts(8, prompt, vocabulary, 0):
        theirs = llama.worker.call("greedy", "512", llama.files[bench.plan.dtype], text, new - 1)
        ours = bench.ours.call("greedy", bench.plan.dtype, text, new)
        same = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b), new)
        shares.append(same / new)
    return statistics.median(shares)
