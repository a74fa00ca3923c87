"""Many sequences at once: requests in, what each step brings for them out."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from leyden.core.device import keep_freed_memory
from leyden.core.errors import UserError
from leyden.core.transfers import on_device
from leyden.model import PAGE, HybridLM, Pools
from leyden.serve.completion import Chunk, Completion
from leyden.serve.config import EngineConfig
from leyden.serve.conversation import (
    Contents,
    Conversation,
    fingerprint,
    load_conversation,
    read_conversation,
    restore_conversation,
    save_conversation,
)
from leyden.serve.drafts import make_guesser
from leyden.serve.job import Generation, generations
from leyden.serve.memory import Memory, plan_memory
from leyden.serve.offline import Offline
from leyden.serve.request import Delta, QueueFullError, Request, check_request
from leyden.serve.sampling import CompiledGrammar, Grammars, Sampling
from leyden.serve.scheduler import Scheduler
from leyden.serve.statistics import Statistics
from leyden.serve.steps import Steps
from leyden.serve.weights import versions
from leyden.tokenizer import Tokenizer


class Engine:
    """Generates from a model, for many sequences at once; what one gets does not depend on the others.

    Any thread may call :meth:`add`, :meth:`prepare` and :meth:`abort`; all else belongs to the one that steps.
    New weights count from the next request on that finds the engine without any. :meth:`close` it in the end, or use it
    in a ``with``, where grammars are asked for: a process compiles them.

    Args:
        model: is put in evaluation mode.
        tokenizer: None for prompts of token ids alone; there is no text then, and no token that ends it.
        config: memory and work.
        draft: the small model that guesses, where ``speculation`` is ``"draft"``.
        changes: single settings of ``config``.

    Attributes:
        memory: who holds what of it, and what was read before; to be touched between two steps alone.
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
        self._end_tokens = frozenset(() if tokenizer is None else tokenizer.end_ids)
        self._generations: dict[str, list[Generation]] = {}
        self._arrivals: deque[Generation] = deque()
        self._aborts: deque[str] = deque()
        self._offline = Offline(self)
        self._grammars = None if tokenizer is None else Grammars(tokenizer, model.config.vocab_size)
        shape, device = model.ranks.held(model.config), model.norm.weight.device
        sizes = plan_memory(self.config, shape, model.dtype, device)
        pools = Pools(shape, sizes.num_states, sizes.num_pages, dtype=model.dtype, device=device)
        self.memory = Memory(pools, cache_bytes=sizes.cache_bytes, swap_bytes=sizes.swap_bytes)
        self._guesser = make_guesser(self.config, model, draft, sizes.draft_bytes)
        self._begin()

    def _begin(self) -> None:
        """With an empty memory, and the weights as they are now."""
        self.memory.clear()
        self.statistics.measure(self.memory.usage)
        self._weights = versions(self.model)
        self._steps = Steps(self.model, self.memory, self._guesser, self.config, self.statistics)

    @property
    def _scheduler(self) -> Scheduler:
        return self._steps.scheduler

    # Requests.

    @property
    def max_positions(self) -> int:
        """Tokens that a prompt may have, by the model's positions and by the pages that there are."""
        return min(self.model.config.max_position_embeddings, self.memory.max_tokens)

    def check(self, tokens: Sequence[int], sampling: Sampling) -> None:
        """Raise the UserError that :meth:`add` would for such a request."""
        check_request(self.model.config, self.tokenizer, self.memory.max_tokens, tokens, sampling)

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
        made = generations(request, self.tokenizer, self.max_positions, end_tokens=self._end_tokens, grammar=grammar)
        self._generations[request.id] = made
        self._arrivals.append(made[0])

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

    def read_ahead(self, tokens: Sequence[int], salt: str = "") -> None:
        """Let the prefix cache have a text, which is read when there is nothing else to do; between two steps.

        Of one that is longer than a prompt may be, or shorter than a page, nothing is read.
        """
        if PAGE <= len(tokens) <= self.max_positions:
            self._scheduler.settle(list(tokens), salt)

    def reads_ahead(self, tokens: list[int], salt: str = "") -> bool:
        """Whether a text that :meth:`read_ahead` was given is still to be read; between two steps."""
        return any(job.salt == salt and job.tokens == tokens for job in self._scheduler.settling)

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
            with on_device(self.memory.pools.states.device):
                self._take_in()
                deltas = self._steps.step()
            self._strike_off(deltas)
            return deltas
        except BaseException:
            self._drop_all()
            raise

    def _take_in(self) -> None:
        """What was added and aborted since the last step."""
        if self._arrivals and not self._scheduler.has_requests and self._weights != versions(self.model):
            self._begin()
        while self._arrivals:
            self._steps.add(self._arrivals.popleft())
        while self._aborts:
            for job in self._generations.pop(self._aborts.popleft(), ()):
                self._steps.abort(job)

    def _strike_off(self, deltas: list[Delta]) -> None:
        """Of the requests, those that ``deltas`` end."""
        for id in {delta.request for delta in deltas if delta.finish_reason is not None}:
            if all(job.finish_reason is not None for job in self._generations[id]):
                del self._generations[id]

    def _drop_all(self) -> None:
        """After a fault: end all there is. What was in the model may be torn; if it was elsewhere, so may the books."""
        ended = [job for made in list(self._generations.values()) for job in made if job.finish_reason is None]
        if not self._steps.recover(ended):
            self._begin()
        self._generations.clear()
        self._arrivals.clear()
        self._offline.interrupted(ended)

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

    # Conversations on disk.

    def save_conversation(
        self,
        path: Path,
        tokens: Sequence[int],
        messages: Sequence[Mapping[str, str]] = (),
        *,
        salt: str = "",
        mode: int | None = None,
    ) -> int:
        """Write what was read of ``tokens`` to a file (:func:`leyden.serve.conversation.save_conversation`)."""
        return save_conversation(path, self.memory, tokens, self._fingerprint, messages, salt, mode)

    def load_conversation(self, path: Path) -> Conversation:
        """Put what a file holds into the prefix cache (:func:`leyden.serve.conversation.load_conversation`)."""
        return load_conversation(path, self.memory, self._fingerprint, self.model.config.vocab_size)

    def read_conversation(self, path: Path) -> Contents:
        """What a file holds, checked; from any thread (:func:`leyden.serve.conversation.read_conversation`)."""
        return read_conversation(path, self.memory.pools, self._fingerprint, self.model.config.vocab_size)

    def restore_conversation(self, path: Path, contents: Contents, salt: str = "") -> int:
        """Put it into the prefix cache (:func:`leyden.serve.conversation.restore_conversation`)."""
        return restore_conversation(path, self.memory, contents, salt)

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
