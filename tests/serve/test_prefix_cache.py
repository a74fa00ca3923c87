"""The prefix cache: what goes on from it has the bits of what was read whole, and every miss is explained."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch

from leyden.model import PAGE, HybridLM, Pools
from leyden.serve.memory import EngineMemory, Holding, Swapped, audit
from leyden.serve.runner import Reading, Runner


class Reader:
    """Reads whole prompts, one after the other, as an engine would."""

    def __init__(
        self, model: HybridLM, *, states: int = 4, pages: int = 24, snapshots: int = 8, swapped: int = 2
    ) -> None:
        self.model = model
        self.vocab = model.config.vocab_size
        dtype = model.lm_head.weight.dtype
        pools = Pools(model.config, 4, pages, dtype=dtype)
        for pool in (*pools.slots.values(), *pools.pages.values()):
            pool.fill_(torch.nan)  # nothing may be read that was not written
        state_bytes, page_bytes = Pools.bytes_of(model.config, dtype)
        swap_bytes = swapped * (state_bytes + 4 * page_bytes)
        self.memory = EngineMemory(pools, cache_bytes=snapshots * state_bytes, swap_bytes=swap_bytes)
        self.runner = Runner(model, pools)

    def text(self, length: int, seed: int) -> list[int]:
        return torch.randint(self.vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()

    def part(
        self, holding: Holding, tokens: Sequence[int], start: int, most: int = 1 << 20
    ) -> tuple[int, torch.Tensor]:
        """Read on from ``start`` to the next cut or ``most`` tokens further; where it stopped, and the logits."""
        stop = min([start + most, len(tokens), *(cut for cut in self.memory.cuts(holding) if cut > start)])
        logits = self.runner.run([], [Reading(tokens[start:stop], start, holding.pages, [holding.state])])
        if stop % PAGE == 0:
            self.memory.commit_prefix(holding, stop)
        return stop, logits

    def read(self, tokens: Sequence[int], most: int = 1 << 20) -> tuple[Holding, torch.Tensor]:
        holding = self.memory.admit(tokens)
        assert holding is not None
        position, logits = holding.length, torch.empty(0)
        while position < len(tokens):
            position, logits = self.part(holding, tokens, position, most)
        return holding, logits

    def use(self, tokens: Sequence[int]) -> tuple[int, int, dict[str, int]]:
        """Read and release; possible, used, lost."""
        holding, logits = self.read(tokens)
        self.memory.release(holding)
        assert torch.equal(logits, Reader(self.model).read(tokens)[1])
        return holding.cache.possible, holding.cache.used, holding.cache.lost


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def network(request: pytest.FixtureRequest, make_model: Callable[..., HybridLM]) -> HybridLM:
    return make_model().to(request.param)


def test_a_text_is_not_read_twice(network: HybridLM) -> None:
    reader = Reader(network)
    text = reader.text(700, 1)
    assert reader.use(text) == (0, 0, {})
    assert reader.use(text) == (512, 512, {})
    assert reader.use([*text, *reader.text(300, 2)]) == (512, 512, {})
    assert reader.use(text[:513]) == (512, 512, {})
    assert reader.use(text[:512]) == (256, 0, {"no_snapshot": 256})  # at least one token is read
    assert reader.use(text[:200]) == (0, 0, {})


def test_where_texts_part_a_state_is_kept(model: HybridLM) -> None:
    reader = Reader(model)
    shared = reader.text(600, 1)
    texts = [[*shared, *reader.text(300, seed)] for seed in (2, 3, 4)]
    assert reader.use(texts[0]) == (0, 0, {})
    assert reader.use(texts[1]) == (512, 0, {"no_snapshot": 512})
    assert reader.use(texts[2]) == (512, 512, {})


def test_what_a_cache_without_room_lost_is_told(model: HybridLM) -> None:
    reader = Reader(model, pages=4)
    first, second = reader.text(700, 1), reader.text(900, 2)
    reader.use(first)
    reader.use(second)  # needs all pages
    assert reader.use(first) == (512, 0, {"evicted": 512})
    off = Reader(model, snapshots=0)
    off.use(first)
    assert off.memory.usage.pages_kept == 0
    assert off.use(first)[1] == 0


def test_a_ladder_for_texts_that_part_early(model: HybridLM) -> None:
    memory = Reader(model, pages=40).memory
    holding = memory.admit([1] * 8000)
    assert holding is not None
    assert memory.cuts(holding) == (1024, 2048, 4096, 7936)
    memory.release(holding)
    holding = memory.admit([2] * 4700)
    assert holding is not None
    assert memory.cuts(holding) == (1024, 2048, 4608)  # 4096 is too near the end


def test_two_that_read_the_same_share_its_pages(model: HybridLM) -> None:
    reader = Reader(model)
    texts = [[*reader.text(512, 1), *reader.text(100, seed)] for seed in (2, 3)]
    holdings = [reader.memory.admit(text) for text in texts]
    alone = [Reader(model).read(text)[1] for text in texts]
    for holding, text in zip(holdings, texts, strict=True):
        assert holding is not None
        stop, _ = reader.part(holding, text, 0, len(text))
        assert stop == 512
    assert holdings[0] is not None and holdings[1] is not None
    assert holdings[0].pages[:2] == holdings[1].pages[:2]
    assert reader.memory.usage.pages_used == 4
    for holding, text, expected in zip(holdings, texts, alone, strict=True):
        assert holding is not None
        assert torch.equal(reader.part(holding, text, 512, len(text))[1], expected)


def test_forks_go_on_by_themselves(model: HybridLM) -> None:
    reader = Reader(model)
    text = reader.text(600, 1)
    holding, _ = reader.read(text)
    copy = reader.memory.fork(holding, 600)
    assert copy is not None
    assert copy.pages[:2] == holding.pages[:2] and copy.pages[2] != holding.pages[2]
    again = reader.memory.fork(copy, 600)
    assert again is not None

    def decode(whose: Holding, token: int) -> torch.Tensor:
        return reader.runner.run([Reading([token], 600, whose.pages, [whose.state] * 2)], [])

    first = decode(holding, 3)
    assert not torch.equal(decode(again, 4), first)
    assert torch.equal(decode(copy, 3), first)
    for one in (holding, copy, again):
        reader.memory.release(one)
    audit(reader.memory)


_LENGTHS = (1, 130, 256, 300, 520)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 40))])
def test_cached_is_uncached_under_random_sharing(model: HybridLM, seed: int) -> None:
    """Texts that share beginnings, read in random parts, in turns, with evictions, forks and swaps in between."""
    rng = random.Random(seed)
    reader = Reader(model, pages=rng.choice([6, 10, 16]), snapshots=rng.choice([1, 3, 8]))
    memory, stems = reader.memory, [reader.text(length, 7) for length in (256, 512, 700)]
    texts = [[*rng.choice(stems), *reader.text(rng.choice(_LENGTHS), rng.randrange(3))] for _ in range(6)]
    expected = [Reader(model).read(text)[1] for text in texts]
    running: dict[Holding, tuple[int, int]] = {}
    swapped: dict[Swapped, tuple[int, int]] = {}
    hits = finished = 0
    while finished < 16:
        number = rng.randrange(len(texts))
        if len(running) < 3 and (holding := memory.admit(texts[number])) is not None:
            running[holding] = number, holding.length
            hits += holding.cache.used > 0
        for parked in list(swapped):
            if rng.random() < 0.5 and (holding := memory.swap_in(parked)) is not None:
                running[holding] = swapped.pop(parked)
        for holding in list(running):
            number, position = running[holding]
            event = rng.random()
            if event < 0.1 and (parked := memory.swap_out(holding)) is not None:
                swapped[parked] = running.pop(holding)
                continue
            if event > 0.95:  # the client has gone
                del running[holding]
                memory.release(holding)
                continue
            text = texts[number]
            position, logits = reader.part(holding, text, position, PAGE * rng.randint(1, 4))
            running[holding] = number, position
            if position == len(text):
                assert torch.equal(logits, expected[number])
                # What decoding writes behind the prompt must reach nobody else.
                if memory.grow(holding, position + 2):
                    states = [holding.state] * 3
                    reader.runner.run([Reading([1, 2], position, holding.pages, states)], [])
                del running[holding]
                memory.release(holding)
                finished += 1
        audit(memory)
    assert hits >= 3
