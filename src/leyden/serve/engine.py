"""Many sequences at once: requests in, what each step brings for them out."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from leyden.core.device import keep_freed_memory
from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM, Pools
from leyden.serve.completion import Chunk, Completion
from leyden.serve.config import EngineConfig
from leyden.serve.job import Generation, Job
from leyden.serve.memory import Memory
from leyden.serve.request import Delta, FinishReason, QueueFullError, Request
from leyden.serve.runner import Reading, Runner
from leyden.serve.sampling import Sampling, draw
from leyden.serve.scheduler import Plan, Scheduler
from leyden.serve.sizes import plan_sizes
from leyden.serve.statistics import Statistics
from leyden.tokenizer import Tokenizer


class Engine:
    """Generates from a model, for many sequences at once; what one gets does not depend on the others.

    :meth:`add` and :meth:`abort` may be called from any thread; all else belongs to the one that calls :meth:`step`.

    Args:
        model: is put in evaluation mode.
        tokenizer: None for prompts of token ids alone; there is no text then, and no token that ends it.
        config: memory and work.
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
        **changes: Any,
    ) -> None:
        keep_freed_memory()
        settings = {} if config is None else config.model_dump()
        self.config = EngineConfig.parse({**settings, **changes}, "engine")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.statistics = Statistics()
        weight = model.lm_head.weight
        sizes = plan_sizes(model.config, self.config, weight.dtype, weight.device)
        pools = Pools(model.config, sizes.num_states, sizes.num_pages, dtype=weight.dtype, device=weight.device)
        self._memory = Memory(pools, cache_bytes=sizes.cache_bytes, swap_bytes=sizes.swap_bytes)
        self._runner = Runner(model, pools)
        self._scheduler = Scheduler(self._memory, self.config.max_sequences, self.config.step_tokens)
        self._end_tokens = frozenset() if tokenizer is None else frozenset((tokenizer.eos_id, tokenizer.eod_id))
        self._generations: dict[str, list[Generation]] = {}
        self._arrivals: deque[Request] = deque()
        self._aborts: deque[str] = deque()
        self._boxes: dict[str, deque[Delta]] = {}
        self._names = itertools.count()

    @property
    def max_positions(self) -> int:
        """Tokens that a prompt may have, by the model's positions and by the pages that there are."""
        return min(self.model.config.max_position_embeddings, self._memory.max_tokens)

    def check(self, tokens: Sequence[int], sampling: Sampling) -> None:
        """Raise the UserError that :meth:`add` would for such a request."""
        vocabulary, positions = self.model.config.vocab_size, self.model.config.max_position_embeddings
        if sampling.stop and self.tokenizer is None:
            raise UserError("this engine has no tokenizer and sees no text; leave out sampling's stop strings.")
        sampling.check_tokens(vocabulary)
        if not tokens:
            raise UserError("a prompt has at least one token; this one has none.")
        if len(tokens) > positions:
            raise UserError(
                f"the text has {len(tokens)} tokens and the model {positions} positions "
                "(max_position_embeddings); shorten it, or take a model trained for longer contexts."
            )
        if len(tokens) > self.max_positions:
            raise UserError(
                f"the text has {len(tokens)} tokens, and this engine has pages of keys and values for "
                f"{self.max_positions}; shorten it, or raise kv_gigabytes."
            )
        if not 0 <= min(tokens) <= max(tokens) < vocabulary:
            wrong = next(token for token in tokens if not 0 <= token < vocabulary)
            raise UserError(f"token {wrong} is not in the model's vocabulary; ids lie in 0..{vocabulary - 1}.")

    def add(self, request: Request) -> None:
        """Queue a request. The deltas of its completions come from :meth:`step`.

        Raises:
            UserError: it can never be answered: its prompt is longer than the model or the memory allows, or not of
                the vocabulary, or text is asked for without a tokenizer.
            QueueFullError: too many wait.
        """
        self.check(request.tokens, request.sampling)
        if not self._has_room:
            self.statistics.refused += 1
            raise QueueFullError(
                f"{self.statistics.running} sequences run and {self.config.max_queue} requests wait, which is as many "
                "as may (max_queue); try again in a while."
            )
        self._arrivals.append(request)

    @property
    def _has_room(self) -> bool:
        waiting = len(self._arrivals) + len(self._scheduler.waiting)
        return waiting < self.config.max_queue + max(0, self._scheduler.room)

    def abort(self, id: str) -> None:
        """End a request before the next step; no further deltas come. One that has ended, or never was, is no error."""
        self._aborts.append(id)

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._arrivals or self._aborts) or self._scheduler.busy

    def step(self) -> list[Delta]:
        """Read one more token of every sequence that decodes, and parts of prompts.

        Returns:
            What that brings: one delta for each completion that read or drew something.
        """
        self._take_in()
        plan = self._scheduler.plan()
        deltas = [self._end(job, "error", "the memory for keys and values is full") for job in plan.failed]
        if plan.decodes:
            deltas += self._decode(plan.decodes)
        if plan.parts:
            deltas += self._prefill(plan)
        self._count(plan)
        return deltas

    def _take_in(self) -> None:
        while self._arrivals:
            request = self._arrivals.popleft()
            made = [
                Generation(request, index, self.tokenizer, self._end_tokens, self.max_positions)
                for index in range(request.sampling.n)
            ]
            made[0].siblings = made[1:]
            self._generations[request.id] = made
            self._scheduler.add(made[0])
        while self._aborts:
            for job in self._generations.pop(self._aborts.popleft(), ()):
                if job.finish_reason is None:
                    self.statistics.finished["aborted"] += 1
                    self._scheduler.remove(job)

    def _decode(self, jobs: list[Generation]) -> list[Delta]:
        logits = self._runner.run([_reading(job, len(job.tokens)) for job in jobs], [])
        for job in jobs:
            job.read = len(job.tokens)
        return self._draw(jobs, logits)

    def _prefill(self, plan: Plan) -> list[Delta]:
        readings = [_reading(job, stop, wanted=int(stop == job.goal)) for job, stop in plan.parts]
        logits = self._runner.run([], readings)
        ready: list[Generation] = []
        rows: list[int] = []
        deltas: list[Delta] = []
        for job, stop in plan.parts:
            self.statistics.prefill_tokens += stop - job.read
            job.read = stop
            assert job.holding is not None
            if stop % PAGE == 0:
                self._memory.settled(job.holding, stop)
            if not job.decodes:
                deltas.append(job.delta())
                continue
            together = [job, *self._fork(job)]
            rows += [rows[-1] + 1 if rows else 0] * len(together)
            ready += together
        return deltas + self._draw(ready, logits[rows])

    def _fork(self, job: Generation) -> list[Generation]:
        """The siblings of a completion whose prompt has just been read: those that find room go on from there."""
        assert job.holding is not None
        forked: list[Generation] = []
        for sibling in job.siblings:
            holding = self._memory.fork(job.holding, job.goal) if self._scheduler.room > 0 else None
            if holding is None:
                self._scheduler.add(sibling)
                continue
            sibling.holding, sibling.read = holding, job.read
            sibling.admitted(job.cache)
            self._scheduler.start(sibling)
            forked.append(sibling)
        job.siblings = []
        return forked

    def _draw(self, jobs: list[Generation], logits: torch.Tensor) -> list[Delta]:
        """The next token of each of ``jobs``, from its row of logits [R, V]."""
        deltas = []
        for job, drawn in zip(jobs, draw([job.sampler for job in jobs], logits), strict=True):
            job.take(drawn)
            deltas.append(job.delta() if job.finish_reason is None else self._end(job, job.finish_reason))
        self.statistics.decode_tokens += len(jobs)
        return deltas

    def _end(self, job: Generation, reason: FinishReason, error: str | None = None) -> Delta:
        job.finish_reason = reason
        self._scheduler.remove(job)
        self.statistics.finished[reason] += 1
        of_request = self._generations[job.request.id]
        if all(other.finish_reason is not None for other in of_request):
            del self._generations[job.request.id]
        return job.delta(sum(other.drawn for other in of_request), error)

    def _count(self, plan: Plan) -> None:
        statistics, scheduler, usage = self.statistics, self._scheduler, self._memory.usage
        statistics.steps += 1
        statistics.queued, statistics.running = len(scheduler.waiting), len(scheduler.running)
        statistics.swapped, statistics.preemptions = len(scheduler.swapped), scheduler.preemptions
        for name in ("states_used", "states_total", "pages_used", "pages_total", "evictions"):
            setattr(statistics, name, getattr(usage, name))
        statistics.snapshot_bytes_used = usage.snapshot_bytes_used
        statistics.snapshot_bytes_total = usage.snapshot_bytes_total

    # Without a server.

    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling | None = None
    ) -> list[Completion]:
        """Complete each prompt by itself, all of them at once; a completion does not depend on the other prompts.

        Args:
            prompts: texts, which start a document, or token ids, which are taken as they are; an empty one starts
                from the token that begins a document.
            sampling: :class:`Sampling`'s defaults where None.

        Returns:
            In the prompts' order; of each prompt its ``n`` completions.

        Raises:
            UserError: a prompt longer than the model's positions, a token outside its vocabulary, or a text, an empty
                prompt or a stop string for an engine without tokenizer.
        """
        if isinstance(prompts, str):
            raise UserError("generate takes a list of prompts; put the one prompt in a list, or use stream.")
        requests = [self._request(prompt, sampling or Sampling()) for prompt in prompts]
        deltas: dict[tuple[str, int], list[Delta]] = {
            (request.id, index): [] for request in requests for index in range(request.sampling.n)
        }
        for delta in self._run(requests):
            deltas[delta.request, delta.index].append(delta)
        return [Completion.of(parts) for parts in deltas.values()]

    def stream(self, prompt: str | Sequence[int], sampling: Sampling | None = None) -> Iterator[Chunk]:
        """One completion of one prompt, token by token; the texts together are what :meth:`generate` gives.

        Raises:
            UserError: at once, as :meth:`generate`; or several completions are asked for.
        """
        request = self._request(prompt, sampling or Sampling())
        if request.sampling.n != 1:
            raise UserError(f"a stream is of one completion; given n={request.sampling.n}. Take generate for several.")
        return self._chunks(request)

    def _chunks(self, request: Request) -> Iterator[Chunk]:
        deltas: list[Delta] = []
        for delta in self._run([request]):
            deltas.append(delta)
            whole = None if delta.finish_reason is None else Completion.of(deltas)
            for token in delta.tokens[:-1]:
                yield Chunk("", token)
            if delta.tokens:
                yield Chunk(delta.text, delta.tokens[-1], whole)

    def _run(self, requests: Sequence[Request]) -> Iterator[Delta]:
        """The deltas of ``requests``. Where several callers take turns, each one's steps serve the others as well."""
        box: deque[Delta] = deque()
        unsent = deque(requests)
        left = {request.id: request.sampling.n for request in requests}
        self._boxes |= dict.fromkeys(left, box)
        try:
            while left:
                while unsent and self._has_room:
                    self.add(unsent.popleft())
                for delta in self.step():
                    if delta.request in self._boxes:
                        self._boxes[delta.request].append(delta)
                while box:
                    delta = box.popleft()
                    if delta.finish_reason is not None:
                        left[delta.request] -= 1
                        if not left[delta.request]:
                            del left[delta.request]
                    yield delta
        finally:
            for request in requests:
                del self._boxes[request.id]
            for id in left:
                self.abort(id)
            self._take_in()

    def _request(self, prompt: str | Sequence[int], sampling: Sampling) -> Request:
        """A text begins with the token that begins a document; token ids stand as they are."""
        if isinstance(prompt, str) or not prompt:
            if self.tokenizer is None:
                raise UserError("this engine has no tokenizer; give prompts as lists of at least one token id.")
            tokens = [self.tokenizer.bos_id, *(self.tokenizer.encode(prompt) if isinstance(prompt, str) else ())]
        else:
            tokens = list(prompt)
        self.check(tokens, sampling)
        return Request(tokens, sampling, f"offline-{next(self._names)}")


def _reading(job: Job, stop: int, wanted: int = 1) -> Reading:
    assert job.holding is not None
    states = [job.holding.state] * 2
    return Reading(job.tokens[job.read : stop], job.read, job.holding.pages, states, wanted)
