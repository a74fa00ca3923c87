"""Counters of what an engine has done and gauges of what it holds.

Other threads may look at any time: no table grows.
"""

from collections import Counter
from dataclasses import dataclass, field

from leyden.serve.memory import MemoryUsage
from leyden.serve.request import CacheUse


@dataclass
class Statistics:
    """Counters since the engine was made, and gauges of this moment.

    Attributes:
        queued, running, swapped: sequences that wait, that have memory, and that had to make room.
        steps: of the engine.
        prompt_tokens: of all prompts that were admitted.
        prefill_tokens: read in parts; without what the cache had, and with what is read for its sake alone.
        cache_read_tokens: of these, read for the cache's sake alone.
        decode_tokens: drawn.
        cache_possible_tokens, cache_used_tokens: of prompts, that an earlier text shared, and that were not read again.
        cache_lost_tokens: the others, by reason.
        states_used, states_total, pages_used, pages_total: slots and pages.
        snapshot_bytes_used, snapshot_bytes_total: of the prefix cache.
        evictions: from it.
        preemptions: sequences that had to make room, each time.
        finished: completions by reason.
        refused: requests that found the queue full.
        draft_tokens_proposed, draft_tokens_accepted: guesses, and right ones.
        weights_version: how often the engine's weights became others.
    """

    queued: int = 0
    running: int = 0
    swapped: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    prefill_tokens: int = 0
    cache_read_tokens: int = 0
    decode_tokens: int = 0
    cache_possible_tokens: int = 0
    cache_used_tokens: int = 0
    cache_lost_tokens: Counter[str] = field(default_factory=lambda: Counter(no_snapshot=0, evicted=0))
    states_used: int = 0
    states_total: int = 0
    pages_used: int = 0
    pages_total: int = 0
    snapshot_bytes_used: int = 0
    snapshot_bytes_total: int = 0
    evictions: int = 0
    preemptions: int = 0
    finished: Counter[str] = field(default_factory=lambda: Counter(stop=0, length=0, aborted=0, error=0))
    refused: int = 0
    draft_tokens_proposed: int = 0
    draft_tokens_accepted: int = 0
    weights_version: int = 0

    def admitted(self, prompt_tokens: int, cache: CacheUse) -> None:
        """A prompt got memory, and this was found in the cache."""
        self.prompt_tokens += prompt_tokens
        self.cache_possible_tokens += cache.possible
        self.cache_used_tokens += cache.used
        self.cache_lost_tokens.update(cache.lost)

    def measure(self, usage: MemoryUsage) -> None:
        """The gauges of memory."""
        self.states_used, self.states_total = usage.states_used, usage.states_total
        self.pages_used, self.pages_total = usage.pages_used, usage.pages_total
        self.snapshot_bytes_used, self.snapshot_bytes_total = usage.snapshot_bytes_used, usage.snapshot_bytes_total
        self.evictions = usage.evictions
