"""The core of the engine: continuous batching of requests, a step at a time."""

import dataclasses
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self

from leyden.core.errors import UserError
from leyden.core.transfers import on_device
from leyden.model import PAGE, HybridLM, Pools
from leyden.serve.arrivals import Arrivals
from leyden.serve.config import EngineConfig
from leyden.serve.drafts import make_guesser
from leyden.serve.inserts import check_inserts
from leyden.serve.job import Generation, generations
from leyden.serve.memory import EngineMemory, plan_memory
from leyden.serve.new_weights import WeightsWatch
from leyden.serve.request import Delta, FinishReason, QueueFullError, Request, check_adapter, check_request
from leyden.serve.sampling import CompiledGrammar, Grammars, Sampling
from leyden.serve.scheduler import Scheduler
from leyden.serve.statistics import Statistics
from leyden.serve.steps import Steps
from leyden.tokenizer import Tokenizer

_TORN = (
    "the weights of the model were changed while this completion was made, and it would be made by both the old and "
    "the new ones; let requests end before the model is trained, as Engine.update_weights(running='finish') does"
)


class EngineCore:
    """Runs requests on a model, many at once; what one of them gets does not depend on the others.

    Any thread may call :meth:`add`, :meth:`prepare` and :meth:`abort`; all else belongs to the one that steps.
    New weights come by :meth:`leyden.serve.Engine.update_weights`. Where the model's own weights are written to
    instead, the next step sees it: requests that run end with an error, and what was read with the old weights is
    forgotten. (Of steps that follow one another while none of the caller's code runs, as those of a server do, it is
    the next one that takes in a request.) :meth:`close` it in the end, or use it in a ``with``, where grammars are
    asked for: a process compiles them.

    Args:
        model: computes in evaluation mode within a step, and has its own mode again behind it.
        tokenizer: None for prompts of token ids alone; there is no text then, and no token that ends it.
        config: memory and work.
        draft: the small model that guesses, where ``speculation`` is ``"draft"``.
        arrivals: where requests wait for the next step; None for the engine's own.
        changes: single settings of ``config``.

    Attributes:
        memory: who holds what of it, and what was read before; to be touched between two steps alone.
        statistics: what was done so far; its gauges are those after the last step.
        released: whether the memory was given back (:meth:`leyden.serve.Engine.release`).

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
        arrivals: Arrivals | None = None,
        **changes: Any,
    ) -> None:
        settings = {} if config is None else config.model_dump()
        self.config = EngineConfig.parse({**settings, **changes}, "engine")
        self.model = model
        self.tokenizer = tokenizer
        self.statistics = Statistics()
        self.arrivals = Arrivals() if arrivals is None else arrivals
        self._end_tokens = frozenset(() if tokenizer is None else tokenizer.end_ids)
        self._generations: dict[str, list[Generation]] = {}
        self._deltas: list[Delta] = []
        """What :meth:`advance` brought, for the next :meth:`step`."""
        self._grammars = None if tokenizer is None else Grammars(tokenizer, model.config.vocab_size)
        self._draft = draft
        self._sizes = plan_memory(self.config, model.ranks.held(model.config), model.dtype, model.norm.weight.device)
        self.released = False
        self._allocate()
        self._begin()

    def _allocate(self) -> None:
        """Memory as planned; none at all where the engine gives it back."""
        shape, dtype, sizes = self.model.ranks.held(self.model.config), self.model.dtype, self._sizes
        if self.released:
            self._guesser = None
            self.memory = EngineMemory(Pools(shape, 0, 0, dtype=dtype, device="meta"), cache_bytes=0, swap_bytes=0)
            return
        pools = Pools(shape, sizes.num_states, sizes.num_pages, dtype=dtype, device=self.model.norm.weight.device)
        self.memory = EngineMemory(pools, cache_bytes=sizes.cache_bytes, swap_bytes=sizes.swap_bytes)
        self._guesser = make_guesser(self.config, self.model, self._draft, sizes.draft_bytes)

    def _begin(self) -> None:
        """With an empty memory, and the weights as they are now."""
        self.memory.clear()
        self.statistics.measure(self.memory.usage)
        self._watch = WeightsWatch(self.model)
        config = self.config.model_copy(update={"decoder": "torch"}) if self.released else self.config
        self._steps = Steps(self.model, self.memory, self._guesser, config, self.statistics)

    @property
    def weights_version(self) -> int:
        """How often the weights became others. Every completion says which version made it."""
        return self.statistics.weights_version

    @property
    def _scheduler(self) -> Scheduler:
        return self._steps.scheduler

    @property
    def max_positions(self) -> int:
        """Tokens that a prompt may have, by the model's positions and by the pages that there are."""
        return min(self.model.config.max_position_embeddings, self.memory.max_tokens)

    def check(self, tokens: Sequence[int], sampling: Sampling) -> None:
        """Raise the UserError that :meth:`add` would for such a request."""
        self.require_memory()
        check_request(self.model.config, self.tokenizer, self.memory.max_tokens, tokens, sampling)

    def add(self, request: Request) -> None:
        """Queue a request. The deltas of its completions come from :meth:`step`.

        Raises:
            UserError: it can never be answered: its prompt is longer than the model or the memory allows, or not of
                the vocabulary, or text is asked for without a tokenizer; its inserts do not fit; its id is another's.
            QueueFullError: too many wait.
        """
        self.check(request.tokens, request.sampling)
        check_adapter(self.model, request.salt)
        check_inserts(self.model, len(request.tokens), request.inserts)
        if request.id in self._generations:
            raise UserError(f"there is a request with the id {request.id!r} already; give each its own.")
        if not self.has_room:
            self.statistics.refused += 1
            raise QueueFullError(
                f"{self.statistics.running} sequences run and {self.config.max_queue} requests wait, which is as many "
                "as may (max_queue); try again in a while."
            )
        self.accept(request)

    def accept(self, request: Request) -> None:
        """Queue a request for which there was room, and of which nothing is wrong: another rank's engine has looked."""
        if request.sampling.seed is None:  # one that every rank which computes the model draws from
            sampling = request.sampling.model_copy(update={"seed": secrets.randbits(62)})
            request = dataclasses.replace(request, sampling=sampling)
        grammar = self.prepare(request.sampling)
        made = generations(request, self.tokenizer, self.max_positions, end_tokens=self._end_tokens, grammar=grammar)
        self._generations[request.id] = made
        self.arrivals.add(made[0])

    def prepare(self, sampling: Sampling) -> CompiledGrammar | None:
        """Compile the grammar of a request to come: that takes up to seconds, and adding the request no time then.

        Raises:
            UserError: it cannot be compiled.
        """
        if sampling.grammar is None or self._grammars is None:
            return None
        return self._grammars.compile(sampling.grammar)

    def is_prepared(self, sampling: Sampling) -> bool:
        """Whether :meth:`prepare` takes no time."""
        return sampling.grammar is None or self._grammars is None or self._grammars.known(sampling.grammar)

    @property
    def has_room(self) -> bool:
        """Whether one more request may come."""
        waiting = len(self.arrivals) + len(self._scheduler.waiting)
        return waiting < self.config.max_queue + max(0, self._scheduler.room)

    def abort(self, id: str) -> None:
        """End a request before the next step; no further deltas come. One that has ended, or never was, is no error."""
        self.arrivals.abort(id)

    def abort_now(self, ids: Iterable[str]) -> None:
        """End requests at once, between two steps, and those that :meth:`abort` named."""
        for id in ids:
            self.arrivals.abort(id)
        if self.arrivals.pending:
            self._take_in("arrivals")

    def read_ahead(self, tokens: Sequence[int], salt: str = "") -> None:
        """Let the prefix cache have a text, which is read when there is nothing else to do; between two steps.

        Of one that is longer than a prompt may be, or shorter than a page, nothing is read; nor while the engine has
        given its memory back.
        """
        self.arrivals.tell("read ahead", list(tokens), salt)
        if PAGE <= len(tokens) <= self.max_positions:  # 0 positions without memory
            self._scheduler.read_for_cache(list(tokens), salt)

    def reads_ahead(self, tokens: list[int], salt: str = "") -> bool:
        """Whether a text that :meth:`read_ahead` was given is still to be read; between two steps."""
        return any(job.salt == salt and job.tokens == tokens for job in self._scheduler.cache_reads)

    def rest(self) -> None:
        """Read what is left to be read for the prefix cache alone, unless there are requests."""
        while self._scheduler.cache_reads and not self._scheduler.has_requests:
            self.advance()

    @property
    def busy(self) -> bool:
        """Whether a step has something to do, were it only for the prefix cache."""
        if self.released:
            return bool(self._deltas)
        waiting = self.arrivals.pending or bool(self._deltas or self._scheduler.cache_reads)
        return waiting or self._scheduler.has_requests

    def step(self, *, entered: bool = True) -> list[Delta]:
        """Read one more token of every sequence that decodes, and parts of prompts.

        A step that runs out of memory ends the request that asked for most, and the others go on.

        Args:
            entered: whether code that may write to the weights has run since the last step. To look for such writes
                takes some 0.15 ms, which is 5 % of a small model's step; a loop that does nothing but step saves it.

        Returns:
            What that brings: one delta for each completion that read or drew something. Those of a request with
            ``on_delta`` were given to that instead.
        """
        self.advance(entered=entered)
        deltas, self._deltas = self._deltas, []
        return deltas

    def advance(self, *, entered: bool = True) -> None:
        """Take a step of which the next :meth:`step` returns the deltas: for a caller whose requests have
        ``on_delta``. ``entered`` is as there."""
        if not self.released:
            self._advance(lambda: self._take_in("step" if entered else "next step"))

    def _advance(self, first: Callable[[], None]) -> None:
        """Do ``first``, and take a step."""
        try:
            with on_device(self.memory.pools.device):
                first()
                deltas = self._steps.step()
            self._deltas += self._given_out(deltas)
        except BaseException:
            self._drop_all()
            raise

    def _take_in(self, order: Literal["step", "next step", "arrivals"]) -> None:
        """What was added and aborted since the last time; before it, weights that were written to."""
        arrived, aborted = self.arrivals.take(order)
        if (arrived or order != "next step") and self._watch.changed():
            self._end_running("error", _TORN)
            self._renew()
        for first in arrived:
            self._steps.add(first)
        for id in aborted:
            for job in self._generations.pop(id, ()):
                self._steps.abort(job)

    def _renew(self) -> None:
        """Begin anew with the weights as they are now."""
        self._begin()
        self.statistics.weights_version += 1

    def require_memory(self) -> None:
        """Refuse what an engine without memory cannot do.

        Raises:
            UserError: it has given its memory back.
        """
        if self.released:
            raise UserError(
                "this engine has given its memory back (release) and generates nothing; call acquire() first."
            )

    def _running(self) -> list[str]:
        """The ids of the requests that were taken in and have not ended."""
        scheduler = self._scheduler
        return list(
            dict.fromkeys(job.request.id for job in (*scheduler.waiting, *scheduler.running, *scheduler.swapped))
        )

    def _end_running(self, reason: FinishReason, error: str | None) -> None:
        """End the requests that were taken in, and tell those who asked."""
        jobs = [job for id in self._running() for job in self._generations[id] if job.finish_reason is None]
        self._deltas += self._given_out([self._steps.end(job, reason, error) for job in jobs])

    def _given_out(self, deltas: list[Delta]) -> list[Delta]:
        """Give requests their deltas, forget those that have ended, and return the deltas that are the caller's."""
        version, rest, ended = self.weights_version, list[Delta](), dict[str, None]()
        for delta in deltas:
            delta.weights_version = version
            if delta.finish_reason is not None:
                ended[delta.request] = None
            on_delta = self._generations[delta.request][0].request.on_delta
            if on_delta is None:
                rest.append(delta)
            else:
                on_delta(delta)
        for id in ended:
            if all(job.finish_reason is not None for job in self._generations[id]):
                del self._generations[id]
        return rest

    def _drop_all(self) -> None:
        """After a fault: end all there is. What was in the model may be torn; if it was elsewhere, so may the books."""
        self.arrivals.clear()
        ended = [job for made in list(self._generations.values()) for job in made if job.finish_reason is None]
        if not self._steps.recover(ended):
            self._begin()
        for job in ended:
            job.finish_reason = "error"
        self._given_out([job.delta("the engine was interrupted") for job in ended])
        self._generations.clear()

    def close(self) -> None:
        """End the process that compiles grammars, if one was asked for. From any thread, and as often as you like.

        All else goes with the object; one that is used again starts that process again.
        """
        if self._grammars is not None:
            self._grammars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
