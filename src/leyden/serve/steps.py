"""A step of the engine: schedule, run the model, sample, and report."""

from collections.abc import Iterable

import torch

from leyden.core.device import is_out_of_memory
from leyden.core.transfers import pick
from leyden.model import PAGE, HybridLM
from leyden.serve.config import EngineConfig
from leyden.serve.drafts import Drafts
from leyden.serve.job import Generation, Job
from leyden.serve.memory import EngineMemory
from leyden.serve.request import Delta, FinishReason
from leyden.serve.runner import Reading, Runner
from leyden.serve.sampling import Draw, draw
from leyden.serve.scheduler import Scheduler
from leyden.serve.speculation import Guesser
from leyden.serve.statistics import Statistics
from leyden.serve.weights import decoder_of


class Steps:
    """Steps with one state of the weights, from an empty memory on. For one thread.

    Args:
        model: with the weights as they are now.
        memory: of the sequences; empty.
        guesser: of tokens to come; None for none.
        config: of the engine.
        statistics: where all is counted.

    Attributes:
        scheduler: of the sequences, and of what is read for the prefix cache alone.
    """

    def __init__(
        self,
        model: HybridLM,
        memory: EngineMemory,
        guesser: Guesser | None,
        config: EngineConfig,
        statistics: Statistics,
    ) -> None:
        self.scheduler = Scheduler(memory, config.max_sequences, config.step_tokens, guesses=guesser is not None)
        self._memory = memory
        self._runner = Runner(model, memory.pools, decoder_of(model, memory.pools, config.decoder))
        self._drafts = Drafts(guesser, memory, config.draft_tokens, statistics)
        self._statistics = statistics
        self._in_model = False
        self._decoded: list[Generation] = []
        """Those that read one token in the last step, and nothing else was read in it."""

    def add(self, job: Generation) -> None:
        """Let a completion wait for its turn; its siblings come with it."""
        self.scheduler.drop_covered_cache_reads(job)
        self.scheduler.add(job)

    def abort(self, job: Generation) -> None:
        """End a completion, if it has not ended, without a further delta."""
        if job.finish_reason is None:
            self._finish(job, "aborted")

    def end(self, job: Generation, reason: FinishReason, error: str | None = None) -> Delta:
        """End a completion that goes on; its last delta."""
        self._finish(job, reason)
        return job.delta(error)

    def step(self) -> list[Delta]:
        """As :meth:`leyden.serve.Engine.step`; where it raises, :meth:`recover` comes next."""
        repeats = self.scheduler.repeats
        plan = self.scheduler.plan()
        for job in plan.admitted:
            self._statistics.admitted(job.goal, job.cache)
        deltas = [delta for job in plan.failed for delta in self._fail(job, "the memory for keys and values is full")]
        if plan.decodes and plan.parts and self._runner.mixes:
            deltas += self._mixed(plan.decodes, plan.parts)
        else:
            deltas += self._decode(plan.decodes) if plan.decodes else []
            deltas += self._prefill(plan.parts) if plan.parts else []
        if plan.cache_read is not None:
            self._read_for_cache(*plan.cache_read)
        self._statistics.steps += 1
        if not (repeats and self.scheduler.repeats):  # else all gauges are what they were
            self._gauge()
        return deltas

    def recover(self, jobs: Iterable[Generation]) -> bool:
        """After a step that raised: end ``jobs``, which are all that go on, and what is read for the cache alone.

        Returns:
            False where it was not the model that raised: then the books may be torn, and this must not be used again.
        """
        in_model, self._in_model = self._in_model, False
        for job in jobs:
            self._drafts.forget(job)
            if in_model:
                self.scheduler.remove(job)
        if in_model:
            self._drafts.give_back()
            self.scheduler.abandon_cache_reads()
        return in_model

    # Reading.

    def _read(self, decodes: list[Reading], prefills: list[Reading]) -> torch.Tensor:
        self._in_model = True
        logits = self._runner.run(decodes, prefills)
        self._in_model = False
        return logits

    def _read_next(self, jobs: list[Generation]) -> torch.Tensor:
        """What was drawn of those that decoded in the last step, and had no guesses."""
        self._in_model = True
        logits = self._runner.run_next([job.tokens[-1] for job in jobs])
        self._in_model = False
        return logits

    def _decode(self, jobs: list[Generation]) -> list[Delta]:
        same, self._decoded = jobs is self._decoded and self._runner.goes_on, jobs
        readings = [] if same else self._drafts.readings(jobs)
        try:
            logits = self._read_next(jobs) if same else self._read(readings, [])
        except (MemoryError, RuntimeError) as error:
            self._check_memory(error)
            return self._torn(jobs)
        return self._drawn(jobs, readings, logits)

    def _prefill(self, parts: list[tuple[Generation, int]]) -> list[Delta]:
        readings = [job.reading(stop) for job, stop in parts]
        try:
            logits = self._read([], readings)
        except (MemoryError, RuntimeError) as error:
            self._check_memory(error)
            return self._make_do(parts)
        return self._were_read(parts, readings, logits)

    def _mixed(self, jobs: list[Generation], parts: list[tuple[Generation, int]]) -> list[Delta]:
        """Both in one pass over the weights."""
        decodes, prefills = self._drafts.readings(jobs), [job.reading(stop) for job, stop in parts]
        try:
            logits = self._read(decodes, prefills)
        except (MemoryError, RuntimeError) as error:
            self._check_memory(error)
            return self._torn(jobs) + self._make_do(parts)
        bound = sum(reading.wanted for reading in decodes)
        return self._drawn(jobs, decodes, logits[:bound]) + self._were_read(parts, prefills, logits[bound:])

    def _were_read(
        self, parts: list[tuple[Generation, int]], readings: list[Reading], logits: torch.Tensor
    ) -> list[Delta]:
        """Parts of prompts were read; those that are at their end draw their first token from the logits [R, V]."""
        ready: list[Generation] = []
        rows: list[int] = []
        deltas: list[Delta] = []
        end = 0
        for (job, stop), reading in zip(parts, readings, strict=True):
            end += reading.wanted
            self._was_read(job, stop)
            if reading.scores is not None:
                job.scored(reading.scores)
            if job.decodes:
                together = [job, *self._fork(job)]
                ready += together
                rows += [end - 1] * len(together)
            else:
                deltas.append(job.delta())
        if not ready:
            return deltas
        draws = draw([job.sampler for job in ready], pick(logits, rows))
        return deltas + [self._advance(job, [drawn]) for job, drawn in zip(ready, draws, strict=True)]

    def _read_for_cache(self, job: Job, stop: int) -> None:
        """Read a part of a text for the cache alone."""
        try:
            self._read([], [job.reading(stop)])
        except (MemoryError, RuntimeError) as error:
            self._check_memory(error)
            self.scheduler.abandon_cache_reads()
            return
        self._statistics.cache_read_tokens += stop - job.read
        self._was_read(job, stop)

    def _was_read(self, job: Job, stop: int) -> None:
        """The cache takes what it wants of it."""
        assert job.holding is not None
        self._statistics.prefill_tokens += stop - job.read
        job.read = stop
        if stop % PAGE == 0 and stop > job.holding.length:
            self._memory.commit_prefix(job.holding, stop)

    def _fork(self, job: Generation) -> list[Generation]:
        """The siblings of a completion whose prompt has just been read: those that find room go on from there."""
        assert job.holding is not None
        forked: list[Generation] = []
        for sibling in job.siblings:
            holding = self._memory.fork(job.holding, job.goal) if self.scheduler.room > 0 else None
            if holding is None:
                self.scheduler.add(sibling)
                continue
            sibling.forked(job, holding)
            self.scheduler.start(sibling)
            forked.append(sibling)
        job.siblings = []
        return forked

    # Drawing.

    def _drawn(self, jobs: list[Generation], readings: list[Reading], logits: torch.Tensor) -> list[Delta]:
        """The next tokens of each of ``jobs``, from the logits [R, V] behind all that was read."""
        draws = self._drafts.accept(jobs, readings, logits)
        return [self._advance(job, drawn) for job, drawn in zip(jobs, draws, strict=True)]

    def _advance(self, job: Generation, draws: list[Draw]) -> Delta:
        """Its next tokens were drawn."""
        for drawn in draws:
            job.take(drawn)
            self._statistics.decode_tokens += 1
            failure = job.sampler.failure
            if failure is not None:
                return self._end(job, "error", failure)
            if job.finish_reason is not None:
                return self._end(job, job.finish_reason)
        return job.delta()

    # Ends.

    def _end(self, job: Generation, reason: FinishReason, error: str | None = None) -> Delta:
        self._finish(job, reason)
        wanted = error is None and job.request.cache_completion and job.request.sampling.n == 1
        if wanted and job.goal // PAGE < len(job.tokens) // PAGE:
            self.scheduler.read_for_cache(job.tokens, job.salt, job.inserts)
        return job.delta(error)

    def _finish(self, job: Generation, reason: FinishReason) -> None:
        job.finish_reason = reason
        self._statistics.finished[reason] += 1
        self.scheduler.remove(job)
        self._drafts.forget(job)

    def _fail(self, job: Generation, error: str) -> list[Delta]:
        """It cannot go on, nor can those that would have gone on from the prompt it reads."""
        return [self._end(failed, "error", error) for failed in (job, *job.siblings)]

    def _torn(self, jobs: list[Generation]) -> list[Delta]:
        """After a step that ran out of memory: the states of all that decode in it may be torn, so they end."""
        return [delta for job in jobs for delta in self._fail(job, "the machine ran out of memory")]

    def _make_do(self, parts: list[tuple[Generation, int]]) -> list[Delta]:
        """After a step that ran out of memory: end what read most in it; the others begin anew.

        Their states may be torn; nothing of them was drawn yet.
        """
        largest, _ = max(parts, key=lambda part: (part[1] - part[0].read, part[0].rank))
        for job, _ in parts:
            if job is not largest:
                self.scheduler.add(job)
        error = f"the machine ran out of memory while it read the prompt of {largest.goal} tokens"
        return self._fail(largest, error)

    def _check_memory(self, error: MemoryError | RuntimeError) -> None:
        """Raise ``error`` again unless it says that there is no memory."""
        if not is_out_of_memory(error):
            raise error
        self._in_model = False
        self._drafts.give_back()
        if self._memory.pools.device.type == "cuda":
            torch.cuda.empty_cache()

    def _gauge(self) -> None:
        statistics, scheduler = self._statistics, self.scheduler
        statistics.queued, statistics.running = len(scheduler.waiting), len(scheduler.running)
        statistics.swapped, statistics.preemptions = len(scheduler.swapped), scheduler.preemptions
        statistics.measure(self._memory.usage)
