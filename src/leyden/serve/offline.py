"""Generation without a server: requests of this process, and the steps of an engine that answer them.

Several callers may take turns on one engine: each has its requests' deltas put into a queue of its own, whoever's step
brings them.
"""

import uuid
from collections import deque
from collections.abc import Iterator, Sequence

from leyden.core.errors import UserError
from leyden.serve.completion import Chunk, Completion
from leyden.serve.engine_core import EngineCore
from leyden.serve.request import Delta, Request, salted
from leyden.serve.sampling import Sampling


def generate(
    engine: EngineCore,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    adapter: str | Sequence[str] = "",
) -> list[Completion]:
    """See :meth:`leyden.serve.Engine.generate`."""
    each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    if len(each) != len(prompts):
        raise UserError(f"generate takes one sampling, or one for each prompt; given {len(each)} for {len(prompts)}.")
    adapters = [adapter] * len(prompts) if isinstance(adapter, str) else adapter
    if len(adapters) != len(prompts):
        raise UserError(
            f"generate takes one adapter, or one for each prompt; given {len(adapters)} for {len(prompts)}."
        )
    requests = [
        _request(engine, prompt, own, watched=False, adapter=name)
        for prompt, own, name in zip(prompts, each, adapters, strict=True)
    ]
    deltas: dict[str, list[list[Delta]]] = {r.id: [[] for _ in range(r.sampling.n)] for r in requests}
    for delta in _run(engine, requests, entered=False):
        deltas[delta.request][delta.index].append(delta)
    return [made for request in requests for made in Completion.of_request(request.tokens, deltas[request.id])]


def stream(engine: EngineCore, prompt: str | Sequence[int], sampling: Sampling) -> Iterator[Chunk]:
    """See :meth:`leyden.serve.Engine.stream`."""
    request = _request(engine, prompt, sampling, watched=True)
    if sampling.n != 1:
        raise UserError(f"a stream is of one completion; given n={sampling.n}. Take generate for several.")
    return _chunks(engine, request)


def _chunks(engine: EngineCore, request: Request) -> Iterator[Chunk]:
    deltas: list[Delta] = []
    for delta in _run(engine, [request], entered=True):
        deltas.append(delta)
        whole = None
        if delta.finish_reason is not None:
            (whole,) = Completion.of_request(request.tokens, [deltas])
            if whole.error is not None:
                raise UserError(f"a completion failed: {whole.error}.")
        for token in delta.tokens[:-1]:
            yield Chunk("", token)
        if delta.tokens:
            yield Chunk(delta.text, delta.tokens[-1], whole)


def _run(engine: EngineCore, requests: Sequence[Request], *, entered: bool) -> Iterator[Delta]:
    """The deltas of ``requests``; those that have not ended when the caller stops are aborted.

    ``entered`` says whether code outside of this module runs between two deltas (:meth:`EngineCore.step`).
    """
    box: deque[Delta] = deque()
    unsent = deque(requests)
    left = {request.id: request.sampling.n for request in requests}
    try:
        while left:
            while unsent and engine.has_room:
                request = unsent.popleft()
                request.on_delta = box.append
                engine.add(request)
            if not box:
                engine.advance(entered=entered)
            while box:
                delta = box.popleft()
                if delta.finish_reason is not None:
                    left[delta.request] -= 1
                    if not left[delta.request]:
                        del left[delta.request]
                yield delta
    finally:
        engine.abort_now(left)


def _request(
    engine: EngineCore, prompt: str | Sequence[int], sampling: Sampling, *, watched: bool, adapter: str = ""
) -> Request:
    """A text begins with the token that begins a document; token ids stand as they are."""
    if isinstance(prompt, str) or not prompt:
        if engine.tokenizer is None:
            raise UserError("this engine has no tokenizer; give prompts as lists of at least one token id.")
        tokens = engine.tokenizer.encode(prompt if isinstance(prompt, str) else "", bos=True)
    else:
        tokens = list(prompt)
    engine.check(tokens, sampling)
    name, salt = f"offline-{uuid.uuid4().hex}", salted(adapter)
    return Request(tokens, sampling, name, cache_completion=False, watched=watched, salt=salt)
