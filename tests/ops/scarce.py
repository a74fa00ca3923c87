"""A process that runs out of memory inside of native calls; prints what came of it, a line of JSON.

``scarce.py step`` and ``scarce.py ops`` let one allocation of the native library fail after another, for which
``scarce.cpp`` must be preloaded. ``scarce.py limit`` leaves the process no more addresses than it has.
"""

import ctypes
import json
import resource
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import fuzz
import torch

from leyden.model import HybridLM, ModelConfig, NativeDecoder, Pools
from leyden.model.quantized import quantize
from leyden.ops import native


class Reading(NamedTuple):
    """What one sequence reads in a step."""

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    states: Sequence[int]
    wanted: int
    inserts: Sequence[None] = ()


def let_fail(work: Callable[[], object]) -> int:
    """Do ``work`` again and again while one allocation fails: the first, the second and so on, until none is left.

    Each time is in a thread of its own, whose native calls find nothing that earlier ones have kept. Every failure must
    become a MemoryError.

    Returns:
        How many allocations have failed.
    """
    preloaded = ctypes.CDLL(None)
    library = str(native.library().path).encode()
    ends: list[BaseException | None] = []

    def attempt() -> None:
        try:
            work()
            ends.append(None)
        except BaseException as error:
            ends.append(error)

    while True:
        preloaded.scarce_after(library, ctypes.c_long(len(ends)))
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        failed = preloaded.scarce_left() < 0
        preloaded.scarce_after(library, ctypes.c_long(-1))
        if not failed:
            assert ends[-1] is None, ends[-1]
            return len(ends) - 1
        assert isinstance(ends[-1], MemoryError), (len(ends), ends[-1])
        assert "there is not enough memory" in str(ends[-1])


_LAYERS = ("linear_attention", "full_attention")
EVERY_BODY = (*_LAYERS, "hgrn2_attention", "cosformer2_attention")
"""Layers that allocate differently; a sliding window allocates as softmax attention."""


def decoder(slots: int, pages: int, kind: str = "float32", layers: tuple[str, ...] = _LAYERS) -> NativeDecoder:
    """Of a model that has the layers, and experts beside which a shared one stands.

    Its memory holds zeros. ``kind`` is that of the weights: ``"float32"``, ``"bfloat16"`` or ``"int8"``.
    """
    torch.manual_seed(0)
    config = ModelConfig(
        layer_types=layers,
        num_hidden_layers=len(layers),
        hidden_size=32,
        head_dim=16,
        rotary_dim=8,
        intermediate_size=16,
        shared_intermediate_size=16,
        num_local_experts=4,
        vocab_size=40,
    )
    model = HybridLM(config)
    if kind != "float32":
        model = model.to(torch.bfloat16)
    if kind == "int8":
        model = quantize(model, head=True)
    pools = Pools(model.config, slots, pages, dtype=torch.float32 if kind == "float32" else torch.bfloat16)
    for memory in (*pools.slots.values(), *pools.pages.values()):
        memory.zero_()
    return NativeDecoder(model, pools)


def fail_in_steps() -> dict[str, int]:
    """The number of failures of a step."""
    step = decoder(5, 3, layers=EVERY_BODY)
    readings = [Reading([1, 2], 0, [0], [0, 1, 2], 2), Reading([4], 0, [1], [3, 3], 1), Reading([5], 0, [2], [4, 4], 1)]
    expected = step.run(readings)
    count = let_fail(lambda: step.run(readings))
    assert torch.equal(step.run(readings), expected), "a later step is what it would have been"
    return {"step": count}


def fail_in_ops() -> dict[str, int]:
    """The number of failures of some calls of each op that has a native body."""
    counts = {}
    for op, (_, backend) in fuzz.OPS.items():
        seeds = range(0 if backend == "torch" else 2 if "attention" in op else 4)
        counts[op] = sum(let_fail(lambda op=op, seed=seed: fuzz.run_body(op, seed)) for seed in seeds)
    return counts


def limit() -> dict[str, str]:
    """What is said by threads that need tens of megabytes each, and by a step of many tokens.

    The threads come first: what a step allocates before it fails stays with the process, and could be enough for them.
    """
    tokens, width = 20_000, 500_000
    step, few = decoder(2, tokens // 256 + 1), [Reading([1], 0, [0], [0, 0], 1)]
    expected = step.run(few)
    many = [Reading([1] * tokens, 0, range(tokens // 256 + 1), [1] * (tokens + 1), 1)]
    x, keys, out = torch.ones(48, 16), torch.ones(width, 16), torch.empty(48, width)
    seen = torch.tensor([0] * 48 + [width] * 48, dtype=torch.int32)
    given = (torch.float32, x, keys, seen, 1.0, 48, 48, width, 16, out)
    few_keys = (torch.zeros_like(seen), 1.0, 48, 48, 48, 16, torch.empty(48, 48))
    native.call("leyden_attention_probabilities", *given[:2], keys[:48], *few_keys)  # that the threads are there
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (8 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    said = {}
    calls = {"op": lambda: native.call("leyden_attention_probabilities", *given), "step": lambda: step.run(many)}
    for name, call in calls.items():
        try:
            call()
        except MemoryError as error:
            said[name] = str(error)
    assert torch.equal(step.run(few), expected), "a later step is what it would have been"
    return said


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(json.dumps({"step": fail_in_steps, "ops": fail_in_ops, "limit": limit}[sys.argv[1]]()))
