"""What ``leyden bench eval`` measures: questions with four answers each, and needles in haystacks.

Both are cut out of the standard library's source."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from leyden.bench.cpu.plan import FULL as CPU
from leyden.bench.cpu.plan import QUICK as CPU_QUICK
from leyden.model import ModelConfig

_CHOICES = 4
_SAMPLE_BYTES = 2_000_000


@dataclass(frozen=True)
class EvalPlan:
    """The work of one run.

    Attributes:
        model: the shape; RoPE turns whole heads, since transformers cannot turn half.
        rows: questions of a measured turn.
        lengths: of the haystacks, in tokens.
        depths: of the needles in each.
        tried: questions by which the other side's fastest variant is chosen, and both sides are compared.
        batches: sizes of a batch that the other side may take.
        repeats: measured turns of each side.
        threads: of each side.
    """

    model: ModelConfig
    rows: int
    lengths: tuple[int, ...]
    depths: int
    tried: int
    batches: tuple[int, ...]
    repeats: int
    threads: int = 2


FULL = EvalPlan(
    model=CPU.model, rows=1000, lengths=(1024, 2048, 4096, 8192), depths=5, tried=32, batches=(16, 64), repeats=1
)
QUICK = EvalPlan(model=CPU_QUICK.model, rows=16, lengths=(256, 512), depths=3, tried=8, batches=(8,), repeats=1)

Pair = tuple[str, str]
"""A context and a continuation."""


def questions(documents: Sequence[str], count: int, seed: int = 0) -> list[Pair]:
    """Contexts of about 100 to 400 letters, each with four continuations of about 20 to 60: four pairs a question."""
    text = "\n".join(documents)[:_SAMPLE_BYTES]
    draws = random.Random(seed)
    pairs = []
    for _ in range(count):
        size = draws.randint(100, 400)
        start = draws.randrange(len(text) - size)
        context = f"Question: {text[start : start + size].strip()}\nAnswer:"
        for _ in range(_CHOICES):
            begin = draws.randrange(len(text) - 60)
            pairs.append((context, " " + text[begin : begin + draws.randint(20, 60)].strip()))
    return pairs
