"""Many sequences at once: requests in, what each step brings for them out."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from leyden.core.device import keep_freed_memory
from leyden.core.errors import UserError
from leyden.core.log import log_once
from leyden.model import PAGE, HybridLM, NativeDecoder, Pools
from leyden.ops.decode import UnavailableError
from leyden.serve.completion import Chunk, Completion
from leyden.serve.config import EngineConfig
from leyden.serve.job import Generation, Job
from leyden.serve.memory import Memory
from leyden.serve.request import Delta, FinishReason, QueueFullError, Request
from leyden.serve.runner import Reading, Runner
from leyden.serve.sampling import Sampling, draw, token_logprobs
from leyden.serve.scheduler import Scheduler
from leyden.serve.sizes import plan_sizes
from leyden.serve.statistics import Statistics
from leyden.tokenizer import Tokenizer

_SCORED_AT_ONCE = 64
"""Rows of logits whose log-probabilities are computed together; bounds memory."""


class Engine:
    """Generates from a model, for many sequences at once; what one gets does not depend on the others.

    :meth:`add` and :meth:`abort` may be called from any thread; all else belongs to the one that calls :meth:`step`.
    New weights count from the next request on that finds the engine without any.

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
        self._end_tokens = frozenset() if tokenizer is None else frozenset((tokenizer.eos_id, tokenizer.eod_id))
        self._generations: dict[str, list[Generation]] = {}
        self._arrivals: deque[list[Generation]] = deque()
        self._aborts: deque[str] = deque()
        self._boxes: dict[str, deque[Delta]] = {}
        self._names = itertools.count()
        shape, device = model.ranks.held(model.config), model.norm.weight.device
        sizes = plan_sizes(shape, self.config, model.dtype, device)
        self._pools = Pools(shape, sizes.num_states, sizes.num_pages, dtype=model.dtype, device=device)
        self._limits = {"cache_bytes": sizes.cache_bytes, "swap_bytes": sizes.swap_bytes}
        self._begin()

    def _begin(self) -> None:
        """Empty memory, and the weights as they are now."""
        self._weights = _versions(self.model)
        self._memory = Memory(self._pools, **self._limits)
        self._runner = Runner(self.model, self._pools, self._native_decoder())
        self._scheduler = Scheduler(self._memory, self.config.max_sequences, self.config.step_tokens)
        self._in_model = False

    def _native_decoder(self) -> NativeDecoder | None:
        if self.config.decoder == "torch":
            return None
        try:
            return NativeDecoder(self.model, self._pools)
        except UnavailableError as reason:
            if self.config.decoder == "native":
                raise UserError(f"decoder='native' cannot run: {reason}; take 'auto' or 'torch'.") from None
            log_once(__name__, f"decoding in PyTorch, not natively: {reason}")
            return None

    # Requests.

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
                the vocabulary, or text is asked for without a tokenizer; or its id is another's.
            QueueFullError: too many wait.
        """
        self.check(request.tokens, request.sampling)
        if request.id in self._generations:
            raise UserError(f"there is a request with the id {request.id!r} already; give each its own.")
        if not self._has_room:
            self.statistics.refused += 1
            raise QueueFullError(
                f"{self.statistics.running} sequences run and {self.config.max_queue} requests wait, which is as many "
                "as may (max_queue); try again in a while."
            )
        made = [
            Generation(request, index, self.tokenizer, self._end_tokens, self.max_positions)
            for index in range(request.sampling.n)
        ]
        made[0].siblings = made[1:]
        self._generations[request.id] = made
        self._arrivals.append(made)

    @property
    def _has_room(self) -> bool:
        waiting = len(self._arrivals) + len(self._scheduler.waiting)
        return waiting < self.config.max_queue + max(0, self._scheduler.room)

    def abort(self, id: str) -> None:
        """End a request before the next step; no further deltas come. One that has ended, or never was, is no error."""
        self._aborts.append(id)

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
        deltas = [self._end(job, "error", "the memory for keys and values is full") for job in plan.failed]
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
        if self._arrivals and not self._scheduler.has_requests and self._weights != _versions(self.model):
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
                    self._scheduler.remove(job)

    def _drop_all(self) -> None:
        """After a fault: end all there is. What was in the model may be torn; if it was elsewhere, so may the books."""
        for made in self._generations.values():
            for job in made:
                if job.request.id in self._boxes and job.finish_reason is None:
                    ended = Delta(job.request.id, job.index, finish_reason="error", error="the engine was interrupted")
                    self._boxes[job.request.id].append(ended)
                if self._in_model:
                    self._scheduler.remove(job)
        if self._in_model:
            self._scheduler.abandon_settling()
        else:
            self._begin()
        self._in_model = False
        self._generations.clear()
        self._arrivals.clear()

    def _read(self, decodes: list[Reading], prefills: list[Reading]) -> torch.Tensor:
        self._in_model = True
        logits = self._runner.run(decodes, prefills)
        self._in_model = False
        return logits

    def _decode(self, jobs: list[Generation]) -> list[Delta]:
        try:
            logits = self._read([_reading(job, len(job.tokens)) for job in jobs], [])
        except (MemoryError, RuntimeError) as error:
            self._check_memory(error)  # the states of all of them may be torn
            return [self._end(job, "error", "the machine ran out of memory") for job in jobs]
        for job in jobs:
            job.read = len(job.tokens)
        return self._draw(jobs, logits)

    def _prefill(self, parts: list[tuple[Generation, int]]) -> list[Delta]:
        readings = [_reading(job, stop, _wanted(job, stop)) for job, stop in parts]
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
                self._score(job, reading, logits[end - reading.wanted : end])
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

    def _score(self, job: Generation, reading: Reading, logits: torch.Tensor) -> None:
        """The log-probabilities of the prompt's tokens behind those of ``reading``, by the logits [R, V] of these."""
        following = job.tokens[reading.start + 1 : min(reading.stop + 1, job.goal)]
        top = job.request.sampling.prompt_logprobs or 0
        for start in range(0, len(following), _SCORED_AT_ONCE):
            some = following[start : start + _SCORED_AT_ONCE]
            job.score(token_logprobs(logits[start : start + len(some)], some, [top] * len(some)))

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
        if error is None and job.request.settle and job.goal // PAGE < len(job.tokens) // PAGE:
            self._scheduler.settle(job.tokens)
        return job.delta(sum(other.drawn for other in of_request), error)

    def _settle(self, job: Job, stop: int) -> None:
        """Read a part of a text for the cache alone."""
        try:
            self._read([], [_reading(job, stop, wanted=0)])
        except (MemoryError, RuntimeError) as error:
            self._check_memory(error)
            self._scheduler.abandon_settling()
            return
        self.statistics.settled_tokens += stop - job.read
        self._was_read(job, stop)

    def _check_memory(self, error: MemoryError | RuntimeError) -> None:
        """Raise ``error`` again unless it says that there is no memory."""
        told = str(error).lower()
        if not isinstance(error, MemoryError) and "out of memory" not in told and "allocate memory" not in told:
            raise error
        self._in_model = False
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
        return [self._end(job, "error", error) for job in (largest, *largest.siblings)]

    def _count(self) -> None:
        statistics, scheduler = self.statistics, self._scheduler
        statistics.steps += 1
        statistics.queued, statistics.running = len(scheduler.waiting), len(scheduler.running)
        statistics.swapped, statistics.preemptions = len(scheduler.swapped), scheduler.preemptions
        statistics.measure(self._memory.usage)

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
        requests = [self._request(prompt, sampling or Sampling(), settle=False) for prompt in prompts]
        deltas: dict[tuple[str, int], list[Delta]] = {
            (request.id, index): [] for request in requests for index in range(request.sampling.n)
        }
        for delta in self._run(requests):
            deltas[delta.request, delta.index].append(delta)
        return [Completion.of(parts) for parts in deltas.values()]

    def stream(
        self, prompt: str | Sequence[int], sampling: Sampling | None = None, *, settle: bool = False
    ) -> Iterator[Chunk]:
        """One completion of one prompt, token by token; the texts together are what :meth:`generate` gives.

        Args:
            prompt, sampling: as in :meth:`generate`.
            settle: read the completion once more behind its end, for a prompt that will go on from it.

        Raises:
            UserError: at once, as :meth:`generate`; or several completions are asked for.
        """
        request = self._request(prompt, sampling or Sampling(), settle)
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
        while self._scheduler.settling and not self._scheduler.has_requests:
            self.step()

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
                if not box:
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

    def _request(self, prompt: str | Sequence[int], sampling: Sampling, settle: bool) -> Request:
        """A text begins with the token that begins a document; token ids stand as they are."""
        if isinstance(prompt, str) or not prompt:
            if self.tokenizer is None:
                raise UserError("this engine has no tokenizer; give prompts as lists of at least one token id.")
            tokens = [self.tokenizer.bos_id, *(self.tokenizer.encode(prompt) if isinstance(prompt, str) else ())]
        else:
            tokens = list(prompt)
        self.check(tokens, sampling)
        return Request(tokens, sampling, f"offline-{next(self._names)}", settle=settle)


def _reading(job: Job, stop: int, wanted: int = 1) -> Reading:
    assert job.holding is not None
    states = [job.holding.state] * 2
    return Reading(job.tokens[job.read : stop], job.read, job.holding.pages, states, wanted)


def _wanted(job: Generation, stop: int) -> int:
    """Of how many of the last tokens before ``stop`` the logits are asked for."""
    return stop - job.read if job.scores_prompt else int(stop == job.goal)


def _versions(model: HybridLM) -> list[tuple[int, int]]:
    """What changes whenever a weight does."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
