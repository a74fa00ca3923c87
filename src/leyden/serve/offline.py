"""An engine without a server: requests of this process, and the steps that answer them."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from leyden.core.errors import UserError
from leyden.serve.completion import Chunk, Completion
from leyden.serve.job import Generation
from leyden.serve.request import Delta, Request
from leyden.serve.sampling import Sampling

if TYPE_CHECKING:
    from leyden.serve.engine import Engine


class Offline:
    """Runs requests on an engine, and steps it as long as they need. Several callers may take turns.

    Args:
        engine: nobody else steps it.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._boxes: dict[str, deque[Delta]] = {}
        self._names = itertools.count()

    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]
    ) -> list[Completion]:
        """See :meth:`Engine.generate`."""
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        if len(each) != len(prompts):
            raise UserError(
                f"generate takes one sampling, or one for each prompt; given {len(each)} for {len(prompts)}."
            )
        requests = [self._request(prompt, own, watched=False) for prompt, own in zip(prompts, each, strict=True)]
        deltas: dict[tuple[str, int], list[Delta]] = {
            (request.id, index): [] for request in requests for index in range(request.sampling.n)
        }
        for delta in self._run(requests):
            deltas[delta.request, delta.index].append(delta)
        return [Completion.of(parts) for parts in deltas.values()]

    def stream(self, prompt: str | Sequence[int], sampling: Sampling) -> Iterator[Chunk]:
        """See :meth:`Engine.stream`."""
        request = self._request(prompt, sampling, watched=True)
        if sampling.n != 1:
            raise UserError(f"a stream is of one completion; given n={sampling.n}. Take generate for several.")
        return self._chunks(request)

    def interrupted(self, generations: Iterable[Generation]) -> None:
        """These were ended by a fault in another caller's step."""
        for job in generations:
            if job.request.id in self._boxes:
                last = Delta(job.request.id, job.index, finish_reason="error", error="the engine was interrupted")
                self._boxes[job.request.id].append(last)

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
        """The deltas of ``requests``; a caller's steps serve the others as well."""
        box: deque[Delta] = deque()
        unsent = deque(requests)
        left = {request.id: request.sampling.n for request in requests}
        self._boxes |= dict.fromkeys(left, box)
        try:
            while left:
                while unsent and self._engine.has_room:
                    self._engine.add(unsent.popleft())
                if not box:
                    for delta in self._engine.step():
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
            self._engine.abort_now(left)

    def _request(self, prompt: str | Sequence[int], sampling: Sampling, *, watched: bool) -> Request:
        """A text begins with the token that begins a document; token ids stand as they are."""
        tokenizer = self._engine.tokenizer
        if isinstance(prompt, str) or not prompt:
            if tokenizer is None:
                raise UserError("this engine has no tokenizer; give prompts as lists of at least one token id.")
            tokens = tokenizer.encode(prompt if isinstance(prompt, str) else "", bos=True)
        else:
            tokens = list(prompt)
        self._engine.check(tokens, sampling)
        return Request(tokens, sampling, f"offline-{next(self._names)}", settle=False, watched=watched)
