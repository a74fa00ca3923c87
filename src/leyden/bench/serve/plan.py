"""What ``leyden bench serve`` measures, and how often."""

from dataclasses import dataclass

import torch

from leyden.bench.cpu.plan import FULL as CPU
from leyden.bench.cpu.plan import QUICK as CPU_QUICK
from leyden.model import ModelConfig


@dataclass(frozen=True)
class ServePlan:
    """The work of one run.

    Attributes:
        model: the shape of ``leyden bench cpu``; both epsilons are one, since llama.cpp knows one.
        streams: how many run at once.
        prompt: tokens of each one's prompt.
        new: tokens that each one is given.
        http_streams: how many run at once through the servers.
        llama: (prefill lengths, tokens of prompt before decoding, tokens decoded) beside llama.cpp.
        turns: of the chat.
        turn: (tokens said, tokens answered) in each.
        contexts: (short, long), between which the cost of a decoded token is compared.
        steps: decoded there.
        repeats: of each measurement; those that take seconds get ``long_repeats``.
        threads: of each side.
        dtype: as in :class:`leyden.bench.cpu.plan.CpuPlan`.
    """

    model: ModelConfig
    streams: int
    prompt: int
    new: int
    http_streams: int
    llama: tuple[tuple[int, ...], int, int]
    turns: int
    turn: tuple[int, int]
    contexts: tuple[int, int]
    steps: int
    repeats: int
    long_repeats: int
    threads: int = 2
    dtype: str = "bfloat16"


FULL = ServePlan(
    model=CPU.model.model_copy(update={"rms_norm_eps": 1e-6}),
    streams=32,
    prompt=512,
    new=64,
    http_streams=8,
    llama=((512, 4096), 512, 128),
    turns=30,
    turn=(180, 60),
    contexts=(1024, 131_072),
    steps=64,
    repeats=5,
    long_repeats=3,
)
QUICK = ServePlan(
    model=CPU_QUICK.model.model_copy(update={"rms_norm_eps": 1e-6}),
    streams=4,
    prompt=40,
    new=4,
    http_streams=2,
    llama=((64,), 32, 4),
    turns=3,
    turn=(180, 60),
    contexts=(64, 600),
    steps=4,
    repeats=1,
    long_repeats=1,
)


def prompts(count: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """``count`` random ones of ``length`` tokens; every seed gives others, so that no cache has seen them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (count, length), generator=generator).tolist()
