"""The scheduler: which sequences run, and how many tokens each reads in the next step.

A step reads one more token of every sequence that decodes, and fills what is left of its budget with parts of prompts,
so that a long prompt delays the others by one step's work at a time. Of the prompts the shortest go first; the one that
has waited longest gets a page a step at least, so that it arrives as well. Where pages run out, the sequence that came
last makes room by moving to host memory, and comes back before anyone new is admitted.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from leyden.model import PAGE
from leyden.serve.inserts import Insert, page_digest
from leyden.serve.job import Generation, Job
from leyden.serve.memory import EngineMemory

_rank = attrgetter("rank")

_UNWATCHED = 4
"""So many steps' tokens in one where nobody waits for single tokens: larger products, fewer passes over the weights."""


@dataclass
class StepPlan:
    """The work of one step.

    Attributes:
        admitted: sequences that got memory.
        decodes: sequences that read their last token.
        parts: sequences that read a part of their prompt, and where it ends.
        cache_read: a text that is read for the cache alone, and where the part ends.
        failed: sequences for which there is no memory, and never will be while the others run.
    """

    admitted: list[Generation] = field(default_factory=list)
    decodes: list[Generation] = field(default_factory=list)
    parts: list[tuple[Generation, int]] = field(default_factory=list)
    cache_read: tuple[Job, int] | None = None
    failed: list[Generation] = field(default_factory=list)


class Scheduler:
    """Gives sequences memory and work.

    Args:
        memory: whose slots and pages they take.
        max_sequences: how many run at once.
        step_tokens: what a step reads; at least a page of prompt, however many decode. Four times as much where none of
            the requests is watched.
        guesses: whether steps also read guessed tokens, of which nobody knows how many are right.

    Attributes:
        waiting, running, swapped: sequences without memory, with it, and moved to the host; each by rank.
        cache_reads: texts to be read for the cache's sake alone, when there is nothing else to do.
        preemptions: how often a sequence had to make room.
    """

    def __init__(self, memory: EngineMemory, max_sequences: int, step_tokens: int, *, guesses: bool = False) -> None:
        self.waiting: list[Generation] = []
        self.running: list[Generation] = []
        self.swapped: list[Generation] = []
        self.cache_reads: deque[Job] = deque()
        self.preemptions = 0
        self._memory = memory
        self._max_sequences = max_sequences
        self._step_tokens = step_tokens
        self._guesses = guesses
        self._repeated, self._repeats = StepPlan(), 0
        """The plan of the next steps, and of how many, unless someone comes or goes."""

    def add(self, job: Generation) -> None:
        """Let it wait for its turn, without memory."""
        self.remove(job)  # which also says that the next plan is another one
        job.read = 0
        insort(self.waiting, job, key=_rank)

    def start(self, job: Generation) -> None:
        """It has its memory, and runs."""
        self._repeats = 0
        insort(self.running, job, key=_rank)

    def remove(self, job: Generation) -> None:
        """Take back all it has, wherever it is."""
        self._repeats = 0
        for jobs in (self.waiting, self.running, self.swapped):
            if job in jobs:
                jobs.remove(job)
        if job.holding is not None:
            self._memory.release(job.holding)
        if job.swapped is not None:
            job.swapped.discard()
        job.holding = job.swapped = None

    def read_for_cache(self, tokens: list[int], salt: str = "", inserts: Sequence[Insert] = ()) -> None:
        """Read ``tokens`` up to the grid when there is time, so that the cache has them; old ones make room."""
        if len(self.cache_reads) == self._max_sequences:
            self._forget(self.cache_reads[0])
        self.cache_reads.append(Job(tokens, len(tokens) // PAGE * PAGE, (0, 0.0, 0), salt, inserts))

    def abandon_cache_reads(self) -> None:
        """Nothing of it is to be relied on."""
        for job in list(self.cache_reads):
            job.read = 0
            self._forget(job)

    def drop_covered_cache_reads(self, prompt: Job) -> None:
        """A prompt will be read that begins with a text that is to be read for the cache: that one need not be."""
        for job in [job for job in self.cache_reads if job.salt == prompt.salt]:
            if _shared(prompt, job, job.goal) == job.goal:
                self._forget(job)

    @property
    def has_requests(self) -> bool:
        """Whether any sequence of a request waits or runs."""
        return bool(self.waiting or self.running or self.swapped)

    @property
    def room(self) -> int:
        """How many more sequences may run."""
        return self._max_sequences - len(self.running) - len(self.swapped)

    def plan(self) -> StepPlan:
        """The next step; its sequences have the pages they need for it.

        As long as nobody comes or goes and every sequence decodes in pages it has, this is the same object again.
        """
        if self._repeats:
            self._repeats -= 1
            return self._repeated
        plan = self._next_plan()
        self._repeated, self._repeats = StepPlan(decodes=plan.decodes), self._unchanged(plan)
        return plan

    @property
    def repeats(self) -> bool:
        """Whether the next plan will be that of the last step."""
        return self._repeats > 0

    def _unchanged(self, plan: StepPlan) -> int:
        """How many more steps ``plan`` is good for, unless someone comes or goes."""
        decodes = plan.decodes
        waits = self.swapped or (self.waiting and self.room > 0)
        if self._guesses or not decodes or waits or plan.parts or plan.failed or len(decodes) < len(self.running):
            return 0
        return min(len(job.holding.pages) * PAGE - len(job.tokens) for job in decodes if job.holding is not None)

    def _next_plan(self) -> StepPlan:
        plan, before = StepPlan(), self.preemptions
        decodes = [job for job in list(self.running) if job.decodes and self._reserve(job, len(job.tokens))]
        if self.preemptions == before:
            decodes += [job for job in self._resume() if job.decodes and self._reserve(job, len(job.tokens))]
            if not self.swapped:
                plan.admitted = self._admit()
        watched = any(job.request.watched for job in self.running)
        budget = self._step_tokens * (1 if watched else _UNWATCHED)
        parts = list(self._parts(max(PAGE, budget - len(decodes))))
        plan.decodes = [job for job in decodes if job.holding is not None]  # not those that made room since
        plan.parts = [(job, stop) for job, stop in parts if job.holding is not None]
        if self.running and not (plan.decodes or plan.parts):
            plan.failed.append(self.running[-1])
        if not self.has_requests:
            plan.cache_read = self._next_cache_read()
        return plan

    def _reserve(self, job: Generation, stop: int) -> bool:
        """Pages for the first ``stop`` tokens of ``job``; those who came later make room."""
        while job.holding is not None:
            if self._memory.grow(job.holding, stop):
                return True
            if not (self._interrupt_cache_reads() or self._preempt(self.running[-1])):
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
                if self._interrupt_cache_reads():
                    continue
                break
            job.swapped = None
            self.start(self.swapped.pop(0))
            resumed.append(job)
        return resumed

    def _admit(self) -> list[Generation]:
        admitted: list[Generation] = []
        for job in list(self.waiting):
            if len(self.running) >= self._max_sequences:
                break
            if self._awaits(job):
                continue
            holding = self._memory.admit(job.tokens[: job.goal], job.salt, job.inserts)
            if holding is None and self._interrupt_cache_reads():
                holding = self._memory.admit(job.tokens[: job.goal], job.salt, job.inserts)
            if holding is None:
                break
            self.waiting.remove(job)
            job.admitted(holding)
            self.start(job)
            admitted.append(job)
        return admitted

    def _awaits(self, job: Generation) -> bool:
        """Whether another sequence is just about to read what ``job`` begins with, so that the cache will have it."""
        if job.scores_prompt:
            return False
        if job.awaits is not None:
            other, position = job.awaits
            if other.holding is not None and other.read < position:
                return True
        job.awaits = None
        for other in self.running:
            if other.salt != job.salt or other.holding is None or other.decodes or not self._memory.cuts(other.holding):
                continue
            position = _shared(job, other, min(job.goal - 1, other.goal))
            if position > other.read:
                # A state is kept there, though where they part was not known when the other came.
                other.holding.cuts = tuple(sorted({*other.holding.cuts, position}))
                job.awaits, other.awaited = (other, position), position
                return True
        return False

    def _parts(self, budget: int) -> Iterator[tuple[Generation, int]]:
        """Parts of prompts that together have at most ``budget`` tokens, and pages for them."""
        reading = [job for job in self.running if not job.decodes]
        oldest = min(reading, key=lambda job: job.rank[1:], default=None)
        rows = PAGE
        for job in sorted(reading, key=lambda job: job.ahead):
            if job is oldest:
                oldest = None
            kept = 0 if oldest is None else min(PAGE, oldest.goal - oldest.read)
            if job.holding is None:  # has just made room
                continue
            room = min(budget - kept, rows) if job.scores_prompt else budget - kept
            stop = job.part(room, self._memory.cuts(job.holding))
            if stop > job.read and self._reserve(job, stop):
                budget -= stop - job.read
                rows -= (stop - job.read) * job.scores_prompt
                yield job, stop

    def _next_cache_read(self) -> tuple[Job, int] | None:
        """The next part of what is to be read for the cache: a page, since a request may come at any moment."""
        while self.cache_reads:
            job = self.cache_reads[0]
            if job.holding is None:
                job.holding = self._memory.admit(job.tokens, job.salt, job.inserts)
                job.read = 0 if job.holding is None else job.holding.length
            if job.holding is not None and job.read < job.goal:
                return job, job.part(PAGE, ())
            self._forget(job)
        return None

    def _interrupt_cache_reads(self) -> bool:
        """Win the memory back that these reads take; whether it took any."""
        holding = next((job for job in self.cache_reads if job.holding is not None), None)
        if holding is not None:
            self._forget(holding)
        return holding is not None

    def _forget(self, job: Job) -> None:
        self.cache_reads.remove(job)
        if job.holding is not None:
            if job.holding.length < job.read < job.goal:  # so far it was worth it
                job.holding.cuts = (*job.holding.cuts, job.read)
                self._memory.commit_prefix(job.holding, job.read)
            self._memory.release(job.holding)
            job.holding = None


def _shared(one: Job, other: Job, limit: int) -> int:
    """How many of the first ``limit`` tokens of two texts are the same, with the same inserts, in whole pages."""

    def differ(at: int) -> bool:
        if one.tokens[at : at + PAGE] != other.tokens[at : at + PAGE]:
            return True
        return page_digest(one.inserts, at) != page_digest(other.inserts, at)

    stop = limit // PAGE * PAGE
    return next((at for at in range(0, stop, PAGE) if differ(at)), stop)
