"""Which sequences run, and what each of them reads in the next step.

A step reads one more token of every sequence that decodes, and fills what is left of its budget with parts of prompts,
so that a long prompt delays the others by one step's work at a time. Of the prompts the shortest go first; the one that
has waited longest gets a page a step at least, so that it arrives as well. Where pages run out, the sequence that came
last makes room by moving to host memory, and comes back before anyone new is admitted.
"""

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from leyden.model import PAGE
from leyden.serve.job import Generation, Job
from leyden.serve.memory import Memory

_rank = attrgetter("rank")


@dataclass
class Plan:
    """The work of one step.

    Attributes:
        decodes: sequences that read their last token.
        parts: sequences that read a part of their prompt, and where it ends.
        failed: sequences for which there is no memory, and never will be while the others run.
    """

    decodes: list[Generation] = field(default_factory=list)
    parts: list[tuple[Generation, int]] = field(default_factory=list)
    failed: list[Generation] = field(default_factory=list)


class Scheduler:
    """Gives sequences memory and work.

    Args:
        memory: whose slots and pages they take.
        max_sequences: how many run at once.
        step_tokens: what a step reads; at least a page of prompt, however many decode.

    Attributes:
        waiting, running, swapped: sequences without memory, with it, and moved to the host; each by rank.
        settling: texts to be read for the cache's sake alone, when there is nothing else to do.
        preemptions: how often a sequence had to make room.
    """

    def __init__(self, memory: Memory, max_sequences: int, step_tokens: int) -> None:
        self.waiting: list[Generation] = []
        self.running: list[Generation] = []
        self.swapped: list[Generation] = []
        self.settling: list[Job] = []
        self.preemptions = 0
        self._memory = memory
        self._max_sequences = max_sequences
        self._step_tokens = step_tokens

    def add(self, job: Generation) -> None:
        """Let it wait for its turn."""
        insort(self.waiting, job, key=_rank)

    def start(self, job: Generation) -> None:
        """It has its memory, and runs."""
        insort(self.running, job, key=_rank)

    def remove(self, job: Generation) -> None:
        """Take back all it has, wherever it is."""
        for jobs in (self.waiting, self.running, self.swapped):
            if job in jobs:
                jobs.remove(job)
        if job.holding is not None:
            self._memory.release(job.holding)
        if job.swapped is not None:
            job.swapped.discard()
        job.holding = job.swapped = None

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.waiting or self.running or self.swapped or self.settling)

    @property
    def room(self) -> int:
        """How many more sequences may run."""
        return self._max_sequences - len(self.running) - len(self.swapped)

    def plan(self) -> Plan:
        """The next step; its sequences have the pages they need for it."""
        before = self.preemptions
        decodes = [job for job in list(self.running) if job.decodes and self._reserve(job, len(job.tokens))]
        if self.preemptions == before:
            decodes += [job for job in self._resume() if job.decodes and self._reserve(job, len(job.tokens))]
            if not self.swapped:
                self._admit()
        budget = max(PAGE, self._step_tokens - len(decodes))
        parts = [(job, stop) for job, stop in self._parts(budget) if self._reserve(job, stop)]
        plan = Plan(
            [job for job in decodes if job.holding is not None],
            [(job, stop) for job, stop in parts if job.holding is not None],
        )
        if self.running and not (plan.decodes or plan.parts):
            plan.failed.append(self.running[-1])
        return plan

    def _reserve(self, job: Generation, stop: int) -> bool:
        """Pages for the first ``stop`` tokens of ``job``; those who came later make room."""
        while job.holding is not None:
            if self._memory.grow(job.holding, stop):
                return True
            if not self._preempt(self.running[-1]):
                return False
        return False

    def _preempt(self, job: Generation) -> bool:
        assert job.holding is not None
        swapped = self._memory.swap_out(job.holding)
        if swapped is None:
            return False
        job.holding, job.swapped = None, swapped
        self.running.remove(job)
        insort(self.swapped, job, key=_rank)
        self.preemptions += 1
        return True

    def _resume(self) -> list[Generation]:
        resumed: list[Generation] = []
        while self.swapped and len(self.running) < self._max_sequences:
            job = self.swapped[0]
            assert job.swapped is not None
            job.holding = self._memory.swap_in(job.swapped)
            if job.holding is None:
                break
            job.swapped = None
            self.start(self.swapped.pop(0))
            resumed.append(job)
        return resumed

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._max_sequences:
            job = self.waiting[0]
            holding = self._memory.admit(job.tokens)
            if holding is None:
                return
            job.holding, job.read = holding, holding.length
            job.admitted(holding.cache)
            self.start(self.waiting.pop(0))

    def _parts(self, budget: int) -> Iterator[tuple[Generation, int]]:
        """Parts of prompts that together have at most ``budget`` tokens."""
        reading = [job for job in self.running if not job.decodes]
        oldest = min(reading, key=lambda job: job.rank[1:], default=None)
        for job in sorted(reading, key=lambda job: job.goal - job.read):
            if job is oldest:
                oldest = None
            kept = 0 if oldest is None else min(PAGE, oldest.goal - oldest.read)
            if job.holding is None:  # has just made room
                continue
            stop = job.part(budget - kept, self._memory.cuts(job.holding))
            if stop > job.read:
                budget -= stop - job.read
                yield job, stop
