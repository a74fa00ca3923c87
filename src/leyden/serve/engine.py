"""Many sequences at once: requests in, what each step brings for them out."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from leyden.core.device import is_out_of_memory, keep_freed_memory
from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM, Pools
from leyden.serve.completion import Chunk, Completion
from leyden.serve.config import EngineConfig
from leyden.serve.conversation import Conversation, fingerprint, load_conversation, save_conversation
from leyden.serve.drafts import Drafts, make_guesser
from leyden.serve.job import Generation, Job
from leyden.serve.memory import Memory, plan_memory
from leyden.serve.offline import Offline
from leyden.serve.request import Delta, FinishReason, QueueFullError, Request, check_request
from leyden.serve.runner import Reading, Runner
from leyden.serve.sampling import CompiledGrammar, Draw, Grammars, Sampler, Sampling, draw
from leyden.serve.scheduler import Scheduler
from leyden.serve.statistics import Statistics
from leyden.serve.weights import native_decoder, versions
from leyden.tokenizer import Tokenizer


class Engine:
    """Generates from a model, for many sequences at once; what one gets does not depend on the others.

    Any thread may call :meth:`add`, :meth:`prepare` and :meth:`abort`; all else belongs to the one that steps.
    New weights count from the next request on that finds the engine without any.

    Args:
        model: is put in evaluation mode.
        tokenizer: None for prompts of token ids alone; there is no text then, and no token that ends it.
        config: memory and work.
        draft: the small model that guesses, where ``speculation`` is ``"draft"``.
        changes: single settings of ``config``.

    Attributes:
        statistics: what was done so far; its gauges are those after the last step.

    Raises:
        UserError: a setting that is not allowed, or that this machine has no memory for.
    """

    def __init__(
        self,
        model: HybridLM,
        tokenizer: Tokenizer | None = None,
        config: EngineConfig | None = None,
        *,
        draft: HybridLM | None = None,
        **changes: Any,
    ) -> None:
        keep_freed_memory()
        settings = {} if config is None else config.model_dump()
        self.config = EngineConfig.parse({**settings, **changes}, "engine")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.statistics = Statistics()
        self._end_tokens = frozenset() if tokenizer is None else frozenset((tokenizer.eos_id, tokenizer.eod_id))
        self._generations: dict[str, list[Generation]] = {}
        self._arrivals: deque[list[Generation]] = deque()
        self._aborts: deque[str] = deque()
        self._offline = Offline(self)
        self._grammars = None if tokenizer is None else Grammars(tokenizer, model.config.vocab_size)
        shape, device = model.ranks.held(model.config), model.norm.weight.device
        sizes = plan_memory(self.config, shape, model.dtype, device)
        self._pools = Pools(shape, sizes.num_states, sizes.num_pages, dtype=model.dtype, device=device)
        self._limits = {"cache_bytes": sizes.cache_bytes, "swap_bytes": sizes.swap_bytes}
        self._guesser = make_guesser(self.config, model, draft, sizes.draft_bytes)
        self._begin()

    def _begin(self) -> None:
        """Empty memory, and the weights as they are now."""
        self._weights = versions(self.model)
        self._memory = Memory(self._pools, **self._limits)
        self.statistics.measure(self._memory.usage)
        self._runner = Runner(self.model, self._pools, native_decoder(self.model, self._pools, self.config.decoder))
        self._scheduler = Scheduler(self._memory, self.config.max_sequences, self.config.step_tokens)
        self._drafts = Drafts(self._guesser, self._memory, self.config.draft_tokens, self.statistics)
        self._in_model = False

    # Requests.

    @property
    def max_positions(self) -> int:
        """Tokens that a prompt may have, by the model's positions and by the pages that there are."""
        return min(self.model.config.max_position_embeddings, self._memory.max_tokens)

    @property
    def memory(self) -> Memory:
        """Who holds what of it, and what was read before; to be touched between two steps alone."""
        return self._memory

    def check(self, tokens: Sequence[int], sampling: Sampling) -> None:
        """Raise the UserError that :meth:`add` would for such a request."""
        check_request(self.model.config, self.tokenizer, self._memory.max_tokens, tokens, sampling)

    def add(self, request: Request) -> None:
        """Queue a request. The deltas of its completions come from :meth:`step`.

        Raises:
            UserError: it can never be answered: its prompt is longer than the model or the memory allows, or not of
                the vocabulary, or text is asked for without a tokenizer; or its id is another's.
            QueueFullError: too many wait.
        """
        self.check(request.tokens, request.sampling)
        if request.id in self._generations:
            raise UserError(f"there is a request with the id {request.id!r} already; give each its own.")
        if not self.has_room:
            self.statistics.refused += 1
            raise QueueFullError(
                f"{self.statistics.running} sequences run and {self.config.max_queue} requests wait, which is as many "
                "as may (max_queue); try again in a while."
            )
        grammar = self.prepare(request.sampling)
        made = []
        for index in range(request.sampling.n):
            sampler = Sampler(request.sampling, request.tokens, index, self._end_tokens, grammar)
            made.append(Generation(request, index, sampler, self.tokenizer, self.max_positions))
        made[0].siblings = made[1:]
        self._generations[request.id] = made
        self._arrivals.append(made)

    def prepare(self, sampling: Sampling) -> CompiledGrammar | None:
        """Compile the grammar of a request to come: that takes up to seconds, and adding the request no time then.

        Raises:
            UserError: it cannot be compiled.
        """
        if sampling.grammar is None or self._grammars is None:
            return None
        return self._grammars.compile(sampling.grammar)

    @property
    def has_room(self) -> bool:
        """Whether one more request may come."""
        waiting = len(self._arrivals) + len(self._scheduler.waiting)
        return waiting < self.config.max_queue + max(0, self._scheduler.room)

    def abort(self, id: str) -> None:
        """End a request before the next step; no further deltas come. One that has ended, or never was, is no error."""
        self._aborts.append(id)

    def abort_now(self, ids: Iterable[str]) -> None:
        """End requests at once, between two steps."""
        self._aborts += ids
        if self._aborts:
            self._take_in()

    def read_ahead(self, tokens: Sequence[int]) -> None:
        """Let the prefix cache have a text, which is read when there is nothing else to do; between two steps.

        Of one that is longer than a prompt may be, or shorter than a page, nothing is read.
        """
        if PAGE <= len(tokens) <= self.max_positions:
            self._scheduler.settle(list(tokens))

    def rest(self) -> None:
        """Read what is left to be read for the prefix cache alone, unless there are requests."""
        while self._scheduler.settling and not self._scheduler.has_requests:
            self.step()

    @property
    def busy(self) -> bool:
        """Whether a step has something to do, were it only for the prefix cache."""
        return bool(self._arrivals or self._aborts or self._scheduler.settling) or self._scheduler.has_requests

    # Steps.

    def step(self) -> list[Delta]:
        """Read one more token of every sequence that decodes, and parts of prompts.

        A step that runs out of memory ends the request that asked for most, and the others go on.

        Returns:
            What that brings: one delta for each completion that read or drew something.
        """
        try:
            return self._step()
        except BaseException:
            self._drop_all()
            raise

    def _step(self) -> list[Delta]:
        self._take_in()
        plan = self._scheduler.plan()
        for job in plan.admitted:
            self.statistics.admitted(job.goal, job.cache)
        deltas = [delta for job in plan.failed for delta in self._fail(job, "the memory for keys and values is full")]
        if plan.decodes:
            deltas += self._decode(plan.decodes)
        if plan.parts:
            deltas += self._prefill(plan.parts)
        if plan.settling is not None:
            self._settle(*plan.settling)
        self._count()
        return deltas

    def _take_in(self) -> None:
        """What was added and aborted since the last step."""
        if self._arrivals and not self._scheduler.has_requests and self._weights != versions(self.model):
            self._begin()
        while self._arrivals:
            first = self._arrivals.popleft()[0]
            self._scheduler.supersede(first.tokens)
            self._scheduler.add(first)
        while self._aborts:
            for job in self._generations.pop(self._aborts.popleft(), ()):
                if job.finish_reason is None:
                    job.finish_reason = "aborted"
                    self.statistics.finished["aborted"] += 1
                    self._release(job)

    def _drop_all(self) -> None:
        """After a fault: end all there is. What was in the model may be torn; if it was elsewhere, so may the books."""
        ended = [job for made in list(self._generations.values()) for job in made if job.finish_reason is None]
        in_model, self._in_model = self._in_model, False
        for job in ended:
            self._drafts.forget(job)
        if in_model:
            self._drafts.give_back()
            self._scheduler.abandon_settling()
            for job in ended:
                self._scheduler.remove(job)
        else:
            self._begin()
        self._generations.clear()
        self._arrivals.clear()
        self._offline.interrupted(ended)

    def _release(self, job: Generation) -> None:
        self._scheduler.remove(job)
        self._drafts.forget(job)

    def _read(self, decodes: list[Reading], prefills: list[Reading]) -> torch.Tensor:
        self._in_model = True
        logits = self._runner.run(decodes, prefills)
        self._in_model = False
        return logits

    def _decode(self, jobs: list[Generation]) -> list[Delta]:
        readings = self._drafts.readings(jobs)
        try:
            logits = self._read(readings, [])
        except (MemoryError, RuntimeError) as error:
            self._check_memory(error)  # the states of all of them may be torn
            return [delta for job in jobs for delta in self._fail(job, "the machine ran out of memory")]
        draws = self._drafts.accept(jobs, readings, logits)
        return [self._advance(job, drawn) for job, drawn in zip(jobs, draws, strict=True)]

    def _prefill(self, parts: list[tuple[Generation, int]]) -> list[Delta]:
        readings = [job.reading(stop) for job, stop in parts]
        try:
            logits = self._read([], readings)
        except (MemoryError, RuntimeError) as error:
            self._check_memory(error)
            return self._make_do(parts)
        ready: list[Generation] = []
        rows: list[int] = []
        deltas: list[Delta] = []
        end = 0
        for (job, stop), reading in zip(parts, readings, strict=True):
            end += reading.wanted
            self._was_read(job, stop)
            if job.scores_prompt:
                job.score(reading, logits[end - reading.wanted : end])
            if job.decodes:
                together = [job, *self._fork(job)]
                ready += together
                rows += [end - 1] * len(together)
            else:
                deltas.append(job.delta())
        return deltas + self._draw(ready, logits[rows])

    def _was_read(self, job: Job, stop: int) -> None:
        """The cache takes what it wants of it."""
        assert job.holding is not None
        self.statistics.prefill_tokens += stop - job.read
        job.read = stop
        if stop % PAGE == 0 and stop > job.holding.length:
            self._memory.settled(job.holding, stop)

    def _fork(self, job: Generation) -> list[Generation]:
        """The siblings of a completion whose prompt has just been read: those that find room go on from there."""
        assert job.holding is not None
        forked: list[Generation] = []
        for sibling in job.siblings:
            holding = self._memory.fork(job.holding, job.goal) if self._scheduler.room > 0 else None
            if holding is None:
                self._scheduler.add(sibling)
                continue
            sibling.forked(job, holding)
            self._scheduler.start(sibling)
            forked.append(sibling)
        job.siblings = []
        return forked

    def _draw(self, jobs: list[Generation], logits: torch.Tensor) -> list[Delta]:
        """The next token of each of ``jobs``, from its row of logits [R, V]."""
        if not jobs:
            return []
        draws = draw([job.sampler for job in jobs], logits)
        return [self._advance(job, [drawn]) for job, drawn in zip(jobs, draws, strict=True)]

    def _advance(self, job: Generation, draws: list[Draw]) -> Delta:
        """Its next tokens were drawn."""
        for drawn in draws:
            job.take(drawn)
            self.statistics.decode_tokens += 1
            if job.sampler.failure is not None:
                return self._end(job, "error", job.sampler.failure)
            if job.finish_reason is not None:
                return self._end(job, job.finish_reason)
        return job.delta()

    def _end(self, job: Generation, reason: FinishReason, error: str | None = None) -> Delta:
        job.finish_reason = reason
        self._release(job)
        self.statistics.finished[reason] += 1
        of_request = self._generations[job.request.id]
        if all(other.finish_reason is not None for other in of_request):
            del self._generations[job.request.id]
        wanted = error is None and job.request.settle and len(of_request) == 1
        if wanted and job.goal // PAGE < len(job.tokens) // PAGE:
            self._scheduler.settle(job.tokens)
        return job.delta(sum(other.drawn for other in of_request), error)

    def _fail(self, job: Generation, error: str) -> list[Delta]:
        """It cannot go on, nor can those that would have gone on from the prompt it reads."""
        return [self._end(failed, "error", error) for failed in (job, *job.siblings)]

    def _settle(self, job: Job, stop: int) -> None:
        """Read a part of a text for the cache alone."""
        try:
            self._read([], [job.reading(stop)])
        except (MemoryError, RuntimeError) as error:
            self._check_memory(error)
            self._scheduler.abandon_settling()
            return
        self.statistics.settled_tokens += stop - job.read
        self._was_read(job, stop)

    def _check_memory(self, error: MemoryError | RuntimeError) -> None:
        """Raise ``error`` again unless it says that there is no memory."""
        if not is_out_of_memory(error):
            raise error
        self._in_model = False
        self._drafts.give_back()
        if self._pools.states.is_cuda:
            torch.cuda.empty_cache()

    def _make_do(self, parts: list[tuple[Generation, int]]) -> list[Delta]:
        """After a step that ran out of memory: end what read most in it; the others begin anew.

        Their states may be torn; nothing of them was drawn yet.
        """
        largest, _ = max(parts, key=lambda part: (part[1] - part[0].read, part[0].rank))
        for job, _ in parts:
            if job is not largest:
                self._scheduler.add(job)
        error = f"the machine ran out of memory while it read the prompt of {largest.goal} tokens"
        return self._fail(largest, error)

    def _count(self) -> None:
        statistics, scheduler = self.statistics, self._scheduler
        statistics.steps += 1
        statistics.queued, statistics.running = len(scheduler.waiting), len(scheduler.running)
        statistics.swapped, statistics.preemptions = len(scheduler.swapped), scheduler.preemptions
        statistics.measure(self._memory.usage)

    # Conversations on disk.

    def save_conversation(self, path: Path, tokens: Sequence[int], messages: Sequence[Mapping[str, str]] = ()) -> int:
        """Write what was read of ``tokens`` to a file (:func:`leyden.serve.conversation.save_conversation`)."""
        return save_conversation(path, self._memory, tokens, self._fingerprint, messages)

    def load_conversation(self, path: Path) -> Conversation:
        """Put what a file holds into the prefix cache (:func:`leyden.serve.conversation.load_conversation`)."""
        return load_conversation(path, self._memory, self._fingerprint)

    @property
    def _fingerprint(self) -> str:
        return fingerprint(self.model, self.tokenizer)

    # Without a server.

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling] | None = None,
    ) -> list[Completion]:
        """Complete each prompt by itself, all of them at once; a completion does not depend on the other prompts.

        Args:
            prompts: texts, which start a document, or token ids, which are taken as they are; an empty one starts
                from the token that begins a document.
            sampling: of all of them, or of each its own; :class:`Sampling`'s defaults where None.

        Returns:
            In the prompts' order; of each prompt its ``n`` completions.

        Raises:
            UserError: a prompt longer than the model's positions, a token outside its vocabulary, or a text, an empty
                prompt or a stop string for an engine without tokenizer.
        """
        if isinstance(prompts, str):
            raise UserError("generate takes a list of prompts; put the one prompt in a list, or use stream.")
        return self._offline.generate(prompts, sampling or Sampling())

    def stream(self, prompt: str | Sequence[int], sampling: Sampling | None = None) -> Iterator[Chunk]:
        """One completion of one prompt, token by token; the texts together are what :meth:`generate` gives.

        Raises:
            UserError: at once, as :meth:`generate`; or several completions are asked for.
        """
        return self._offline.stream(prompt, sampling or Sampling())
