"""``/v1/completions``: texts, or ids of tokens, to go on from."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import cast

from fastapi import APIRouter, Request, Response

from leyden.serve.http.body import JsonRoute
from leyden.serve.http.documentation import responses
from leyden.serve.http.generation import Generation
from leyden.serve.http.logprobs import CompletionLogprobsWriter, joined, prompt_logprobs
from leyden.serve.http.protocol.common import EndReason
from leyden.serve.http.protocol.completions import Completion, CompletionChoice, CompletionRequest
from leyden.serve.http.service import Service, new_id
from leyden.serve.http.streaming import DONE, EventStream, event, while_connected
from leyden.serve.request import Delta
from leyden.serve.sampling import Sampling, TokenLogprobs
from leyden.tokenizer import Tokenizer

_DEFAULT_TOKENS = 16
"""OpenAI's."""


def completion_routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions", responses=responses(Completion, stream=True))
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Go on from texts, or from token ids."""
        service.require()
        name = service.model.called(body.model)
        prompts = await asyncio.to_thread(_prompts, service, body)
        work = _Completions(service, body, name, prompts)
        if body.stream:
            return EventStream(work.events(), service.settings)
        whole = await while_connected(request.receive, work.whole())
        return Response(whole, media_type="application/json")

    return router


@dataclass(frozen=True)
class _Prompt:
    """What is gone on from; its text is there where it is echoed."""

    text: str
    tokens: list[int]


def _prompts(service: Service, body: CompletionRequest) -> list[_Prompt]:
    """The prompts as text and as tokens, checked; a text begins a document."""
    tokenizer = service.model.tokenizer
    prompts = []
    for given in body.prompts():
        if isinstance(given, str):
            prompts.append(_Prompt(given, [tokenizer.bos_id, *tokenizer.encode(given)]))
        else:
            prompts.append(_Prompt(tokenizer.decode(given, skip_special=True) if body.echo else "", given))
        service.model.check(prompts[-1].tokens, body.max_tokens, "prompt")
    return prompts


class _Completions:
    """The completions of one request, which the engine has from here on.

    Raises:
        QueueFullError, UserError: from the engine, at once.
    """

    def __init__(self, service: Service, body: CompletionRequest, name: str, prompts: list[_Prompt]) -> None:
        self._options = body.stream_options
        self._n = body.n or 1
        self._writers = [
            _Writer(service.model.tokenizer, body, prompt, place * self._n + index)
            for place, prompt in enumerate(prompts)
            for index in range(self._n)
        ]
        self._head = Completion(
            id=new_id("cmpl"),
            object="text_completion",
            created=int(time.time()),
            model=name,
            system_fingerprint=service.model.fingerprint,
            choices=[],
        )
        tokens = [prompt.tokens for prompt in prompts]
        self._generation = Generation(service.loop, self._head.id, tokens, _sampling(body))

    async def whole(self) -> str:
        """The response as JSON, once everything is there."""
        pieces: list[list[CompletionChoice]] = [[] for _ in self._writers]
        async for piece in self._pieces():
            pieces[piece.index].append(piece)
        return self._json(list(map(_whole, pieces)), usage=self._generation.usage())

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The response as server-sent events."""
        with_usage = self._options is not None and self._options.include_usage
        continuous = self._options is not None and self._options.continuous_usage_stats
        async for piece in self._pieces():
            usage = {"usage": self._generation.usage() if continuous else None} if with_usage else {}
            yield event(self._json([piece], **usage))
        if with_usage:
            yield event(self._json([], usage=self._generation.usage()))
        yield DONE

    async def _pieces(self) -> AsyncGenerator[CompletionChoice, None]:
        known: dict[int, tuple[TokenLogprobs | None, ...]] = {}
        async for place, delta in self._generation.deltas():
            if delta.prompt_logprobs is not None:
                known[place] = delta.prompt_logprobs
            if delta.tokens or delta.text or delta.finish_reason:
                yield self._writers[place * self._n + delta.index].write(delta, known.get(place, ()))

    def _json(self, choices: list[CompletionChoice], **more: object) -> str:
        return self._head.model_copy(update={"choices": choices, **more}).model_dump_json(exclude_unset=True)


def _sampling(body: CompletionRequest) -> Sampling:
    """For the engine, which draws one token even where the prompt alone is wanted."""
    max_tokens = _DEFAULT_TOKENS if body.max_tokens is None else max(1, body.max_tokens)
    of_prompt = [body.prompt_logprobs, body.logprobs if body.echo else None]
    asked = [number for number in of_prompt if number is not None]
    return body.sampling(max_tokens, logprobs=body.logprobs, prompt_logprobs=max(asked, default=None))


class _Writer:
    """Writes one completion, piece by piece."""

    def __init__(self, tokenizer: Tokenizer, body: CompletionRequest, prompt: _Prompt, index: int) -> None:
        self._tokenizer = tokenizer
        self._body = body
        self._prompt = prompt
        self._index = index
        self._logprobs = CompletionLogprobsWriter(tokenizer, body.logprobs or 0)
        self._begun = False

    def write(self, delta: Delta, of_prompt: tuple[TokenLogprobs | None, ...]) -> CompletionChoice:
        """The piece that ``delta`` makes; the first one tells of the prompt, too, where that is asked for."""
        text, tokens, places = delta.text, list(delta.tokens), list(delta.logprobs)
        if self._body.max_tokens == 0:
            text, tokens, places = "", [], []
        first, self._begun = not self._begun, True
        if first and self._body.echo:
            text, tokens, places = self._prompt.text + text, [*self._prompt.tokens, *tokens], [*of_prompt, *places]
        more = {}
        if first and self._body.prompt_logprobs is not None:
            more["prompt_logprobs"] = prompt_logprobs(self._tokenizer, of_prompt, self._body.prompt_logprobs)
        return CompletionChoice(
            index=self._index,
            text=text,
            logprobs=None if self._body.logprobs is None else self._logprobs.write(tokens, places),
            finish_reason=cast(EndReason | None, delta.finish_reason),  # a Generation raises of the others
            **more,
        )


def _whole(pieces: list[CompletionChoice]) -> CompletionChoice:
    """The pieces of one completion, put together."""
    told = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return pieces[0].model_copy(
        update={
            "text": "".join(piece.text for piece in pieces),
            "logprobs": joined(told) if told else None,
            "finish_reason": pieces[-1].finish_reason,
        }
    )
