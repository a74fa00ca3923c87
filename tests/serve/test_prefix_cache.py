"""The prefix cache: what goes on from it has the bits of what was read whole, and every miss is explained."""

from collections.abc import Callable, Sequence

import pytest
import torch

from leyden.model import PAGE, HybridLM, Pools
from leyden.serve.memory import Holding, Memory
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
        for pool in (pools.states, pools.keys, pools.values):
            pool.fill_(torch.nan)  # nothing may be read that was not written
        state_bytes, page_bytes = Pools.bytes_of(model.config, dtype)
        swap_bytes = swapped * (state_bytes + 4 * page_bytes)
        self.memory = Memory(pools, cache_bytes=snapshots * state_bytes, swap_bytes=swap_bytes)
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
            self.memory.settled(holding, stop)
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
