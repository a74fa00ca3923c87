"""Memory's books under any order of events: nothing leaks, nothing is held twice, refusals change nothing."""

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from leyden.model import PAGE, ModelConfig, Pools
from leyden.serve.memory import EngineMemory, Holding, Swapped, audit, tree

_CONFIG = ModelConfig.parse(
    {
        "vocab_size": 16,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "layer_types": ("linear_attention", "full_attention"),
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "rotary_dim": 2,
    },
    "test model",
)
_STATE_BYTES, _PAGE_BYTES = Pools.bytes_of(_CONFIG, torch.float32)


def _memory(*, states: int = 4, pages: int = 12, snapshots: int = 4, swapped_pages: int = 8) -> EngineMemory:
    pools = Pools(_CONFIG, states, pages, dtype=torch.float32)
    swap_bytes = 2 * _STATE_BYTES + swapped_pages * _PAGE_BYTES
    return EngineMemory(pools, cache_bytes=snapshots * _STATE_BYTES, swap_bytes=swap_bytes)


class Books(RuleBasedStateMachine):
    """Random events over a handful of texts that share beginnings.

    The model is a fake whose state is the sum of the tokens read so far and whose keys are the tokens: so contents can
    be compared with what they ought to be after every event.
    """

    @initialize(
        states=st.integers(1, 5), pages=st.integers(3, 16), snapshots=st.integers(0, 5), swapped=st.integers(0, 9)
    )
    def start(self, states: int, pages: int, snapshots: int, swapped: int) -> None:
        self.memory = _memory(states=states, pages=pages, snapshots=snapshots, swapped_pages=swapped)
        self.running: dict[Holding, tuple[list[int], int]] = {}  # tokens, how many of them were read
        self.swapped: dict[Swapped, tuple[list[int], int]] = {}
        self.lent: list[int] = []

    def write(self, holding: Holding, tokens: list[int], start: int, stop: int) -> None:
        places = torch.arange(start, stop)
        pages = torch.tensor(holding.pages, dtype=torch.int64)[places // PAGE]
        self.memory.pools.pages["keys"][0, pages, places % PAGE] = torch.tensor(tokens[start:stop])[
            :, None, None
        ].float()
        self.memory.pools.slots["state"][:, holding.state] = sum(tokens[:stop])

    def pick(self, data: st.DataObject) -> Holding:
        return list(self.running)[data.draw(st.integers(0, len(self.running) - 1))]

    @rule(blocks=st.lists(st.integers(1, 2), max_size=7), rest=st.integers(0, 3))
    def admit(self, blocks: list[int], rest: int) -> None:
        tokens = [token for block in blocks for token in [block] * PAGE] + [3] * rest
        if not tokens:
            return
        evictions = self.memory.usage.evictions
        holding = self.memory.admit(tokens)
        if holding is None:
            assert self.memory.usage.evictions == evictions
            return
        assert holding.length < len(tokens)
        assert holding.cache.used == holding.length
        assert holding.cache.possible == holding.length + sum(holding.cache.lost.values())
        self.running[holding] = tokens, holding.length

    @precondition(lambda self: self.running)
    @rule(data=st.data(), most=st.integers(1, 3), parts=st.integers(1, 9))
    def prefill(self, data: st.DataObject, most: int, parts: int) -> None:
        holding = self.pick(data)
        for _ in range(parts):
            self.read_a_part(holding, most)

    @rule(blocks=st.lists(st.integers(1, 2), min_size=1, max_size=7))
    def read_and_release(self, blocks: list[int]) -> None:
        before = set(self.running)
        self.admit(blocks, rest=1)
        for holding in set(self.running) - before:
            for _ in blocks:
                self.read_a_part(holding, most=7)
            del self.running[holding]
            self.memory.release(holding)

    def read_a_part(self, holding: Holding, most: int) -> None:
        tokens, start = self.running[holding]
        if start % PAGE or start // PAGE > len(holding.blocks):
            return
        cuts = [cut for cut in self.memory.cuts(holding) if cut > start]
        stop = min([start + most * PAGE, len(tokens), *cuts])
        self.write(holding, tokens, start, stop)
        if stop % PAGE == 0 and stop > start:
            self.memory.commit_prefix(holding, stop)
        self.running[holding] = tokens, stop

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 300))
    def decode(self, data: st.DataObject, count: int) -> None:
        holding = self.pick(data)
        tokens, start = self.running[holding]
        if start < len(tokens) or not self.memory.grow(holding, start + count):
            return
        tokens = [*tokens, *[4] * count]
        self.write(holding, tokens, start, len(tokens))
        self.running[holding] = tokens, len(tokens)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        holding = self.pick(data)
        tokens, length = self.running[holding]
        copy = self.memory.fork(holding, length)
        if copy is not None:
            self.running[copy] = tokens[:length], length

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holding = self.pick(data)
        del self.running[holding]
        self.memory.release(holding)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def swap_out(self, data: st.DataObject) -> None:
        holding = self.pick(data)
        swapped = self.memory.swap_out(holding)
        if swapped is not None:
            self.swapped[swapped] = self.running.pop(holding)

    @precondition(lambda self: self.swapped)
    @rule(data=st.data(), discard=st.booleans())
    def swap_in(self, data: st.DataObject, discard: bool) -> None:
        swapped = list(self.swapped)[data.draw(st.integers(0, len(self.swapped) - 1))]
        if discard:
            swapped.discard()
            del self.swapped[swapped]
            return
        holding = self.memory.swap_in(swapped)
        if holding is not None:
            self.running[holding] = self.swapped.pop(swapped)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def exchange_a_state(self, data: st.DataObject) -> None:
        """As when a draft is verified: the sequence goes on in one of the spare slots."""
        holding, states = self.pick(data), self.memory.states(2)
        if states is not None:
            self.memory.pools.slots["state"][:, states[0]] = self.memory.pools.slots["state"][:, holding.state]
            holding.state, states[0] = states[0], holding.state
            self.lent += states

    @rule()
    def give_back(self) -> None:
        self.memory.give_back(self.lent)
        self.lent = []

    @invariant()
    def nothing_leaks(self) -> None:
        if hasattr(self, "memory"):
            audit(self.memory, self.lent)

    @invariant()
    def all_contents_are_in_place(self) -> None:
        for holding, (tokens, length) in getattr(self, "running", {}).items():
            pools = self.memory.pools
            if length:
                assert pools.slots["state"][0, holding.state, 0, 0, 0] == sum(tokens[:length])
            keys = pools.pages["keys"][0, holding.pages].flatten(0, 1)[:length, 0, 0]
            assert keys.tolist() == tokens[:length]

    def teardown(self) -> None:
        if not hasattr(self, "memory"):
            return
        for holding in self.running:
            self.memory.release(holding)
        for swapped in self.swapped:
            swapped.discard()
        self.memory.give_back(self.lent)
        audit(self.memory)
        usage = self.memory.usage
        assert (usage.states_used, usage.pages_used, usage.swapped, usage.swap_bytes_used) == (0, 0, 0, 0)


TestBooks = Books.TestCase
TestBooks.settings = settings(
    max_examples=60, stateful_step_count=40, derandomize=True, suppress_health_check=list(HealthCheck)
)


def _read(memory: EngineMemory, tokens: list[int]) -> int:
    """How much of a text the cache had."""
    holding = memory.admit(tokens)
    assert holding is not None
    for stop in sorted({*memory.cuts(holding), len(tokens) // PAGE * PAGE}):
        memory.commit_prefix(holding, stop)
    memory.release(holding)
    return holding.length


def test_dense_snapshots_go_first() -> None:
    """A chat has one behind every turn; its first ones go before the only one of a longer text, which is older."""
    memory = _memory(pages=40, snapshots=4)
    other = [7] * (5 * PAGE) + [1]
    _read(memory, other)
    for turn in range(1, 6):
        assert _read(memory, [5] * (turn * PAGE) + [1]) == (turn - 1) * PAGE
    assert _read(memory, other) == 5 * PAGE


def test_pages_come_from_what_was_used_longest_ago() -> None:
    memory = _memory(pages=9, snapshots=8)
    texts = [[number] * (3 * PAGE) for number in range(3)]
    for text in texts:
        _read(memory, text)
    assert _read(memory, [*texts[0], 1]) == 3 * PAGE  # takes the last page; and 1 is now the oldest
    kept = [len(memory.kept(text)[0]) for text in texts]
    assert kept == [3, 0, 3]
    assert memory.usage.pages_used == 0


def test_what_never_fits_lets_nothing_go() -> None:
    memory = _memory(states=1, pages=3)
    _read(memory, [1] * (2 * PAGE))
    before = memory.usage
    assert memory.admit([2] * (3 * PAGE + 1)) is None
    holding = memory.admit([2])
    assert holding is not None
    assert memory.admit([2]) is None
    assert not memory.grow(holding, 4 * PAGE)
    assert memory.fork(holding, 1) is None
    assert memory.states(1) is None
    memory.release(holding)
    assert memory.usage == before
    assert memory.max_tokens == 3 * PAGE


def test_wrong_use_is_told() -> None:
    memory = _memory()
    holding = memory.admit([1] * 600)
    assert holding is not None
    for position in (100, 768, -256):
        with pytest.raises(ValueError, match="grid"):
            memory.commit_prefix(holding, position)
    states = memory.states(1)
    assert states is not None
    memory.give_back(states)
    with pytest.raises(RuntimeError, match="twice"):
        memory.give_back(states)
    memory.release(holding)
    with pytest.raises(KeyError):
        memory.release(holding)


def test_few_ghosts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "_MAX_GHOSTS", 4)
    memory = _memory(pages=4, snapshots=0)
    for number in range(9):
        _read(memory, [number] * (3 * PAGE))
        audit(memory)
    chain = memory.admit([8] * (3 * PAGE))
    assert chain is not None and chain.cache.possible == 2 * PAGE
    memory.release(chain)
    gone = memory.admit([2] * (3 * PAGE))
    assert gone is not None and gone.cache.possible == 0


@pytest.mark.gpu
def test_snapshots_and_swapping_on_a_gpu() -> None:
    pools = Pools(_CONFIG, 3, 8, dtype=torch.bfloat16, device="cuda")
    for _ in range(2):  # the block of the first is freed
        memory = EngineMemory(pools, cache_bytes=4 * _STATE_BYTES, swap_bytes=1 << 20)
        text = [1] * 600
        holding = memory.admit(text)
        assert holding is not None
        pools.slots["state"][:, holding.state] = torch.randn_like(pools.slots["state"][:, 0])
        pools.pages["keys"].normal_()
        state, keys = pools.slots["state"][:, holding.state].clone(), pools.pages["keys"][:, holding.pages].clone()
        memory.commit_prefix(holding, 512)
        swapped = memory.swap_out(holding)
        assert swapped is not None
        pools.slots["state"].zero_()
        pools.pages["keys"][:, -3:] = 0
        again = memory.admit(text)
        assert again is not None and again.length == 512
        assert torch.equal(pools.slots["state"][:, again.state], state)
        assert memory.swap_in(swapped) is holding
        assert torch.equal(pools.slots["state"][:, holding.state], state)
        assert torch.equal(pools.pages["keys"][:, holding.pages], keys)
        kept = memory.kept(text)[1]
        assert kept is not None and torch.equal(kept["state"], state.cpu())
        audit(memory)
        del memory
