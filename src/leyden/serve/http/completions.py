"""``/v1/completions``: texts, or ids of tokens, to go on from."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from fastapi import APIRouter, Request, Response

from leyden.serve.http.answer import GrowingResponse
from leyden.serve.http.body import JsonRoute
from leyden.serve.http.errors import responses
from leyden.serve.http.logprobs import CompletionLogprobsWriter, joined, prompt_logprobs
from leyden.serve.http.protocol.common import EndReason, Usage
from leyden.serve.http.protocol.completions import CompletionChoice, CompletionRequest, CompletionResponse
from leyden.serve.http.service import Service, new_id
from leyden.serve.request import Delta
from leyden.serve.sampling import Sampling, TokenLogprobs
from leyden.serve.threads import Threads
from leyden.tokenizer import Tokenizer

_DEFAULT_TOKENS = 16
"""OpenAI's."""


def completion_routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions", responses=responses(CompletionResponse, stream=True))
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Go on from texts, or from token ids."""
        service.require()
        name = service.model.called(body.model)
        threads: Threads = request.state.threads
        prompts = await threads.run(_prompts, service, body)
        answer = _CompletionAnswer(service, body, name, prompts, threads, service.salt(request, body.cache_salt, name))
        return await answer.respond(request, body.stream, body.stream_options)

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


def _sampling(body: CompletionRequest) -> Sampling:
    """For the engine, which draws one token even where the prompt alone is wanted."""
    max_tokens = _DEFAULT_TOKENS if body.max_tokens is None else max(1, body.max_tokens)
    of_prompt = [body.prompt_logprobs, body.logprobs if body.echo else None]
    asked = [number for number in of_prompt if number is not None]
    return body.sampling(max_tokens, logprobs=body.logprobs, prompt_logprobs=max(asked, default=None))


class _CompletionAnswer(GrowingResponse[CompletionChoice]):
    """The completions of one request."""

    def __init__(
        self,
        service: Service,
        body: CompletionRequest,
        name: str,
        prompts: Sequence[_Prompt],
        threads: Threads,
        salt: str,
    ) -> None:
        self._head = CompletionResponse(
            id=new_id("cmpl"),
            object="text_completion",
            created=int(time.time()),
            model=name,
            system_fingerprint=service.fingerprint,
            choices=[],
        )
        self._body = body
        self._n = body.n or 1
        self._writers = [
            _Writer(service.model.tokenizer, body, prompt, place * self._n + index)
            for place, prompt in enumerate(prompts)
            for index in range(self._n)
        ]
        self._of_prompts: dict[int, tuple[TokenLogprobs | None, ...]] = {}
        generation = service.generate(self._head.id, [prompt.tokens for prompt in prompts], _sampling(body), salt=salt)
        large = body.prompt_logprobs is not None or (body.echo is True and body.logprobs is not None)
        super().__init__(generation, len(self._writers), threads, large=large)

    def write(self, place: int, delta: Delta) -> CompletionChoice | None:
        if delta.prompt_logprobs is not None:
            self._of_prompts[place] = delta.prompt_logprobs
        if not (delta.tokens or delta.text or delta.finish_reason):
            return None
        return self._writers[place * self._n + delta.index].write(delta, self._of_prompts.get(place, ()))

    def usage(self) -> Usage:
        """Where the prompt alone was asked for, the token that the engine drew does not count."""
        usage = super().usage()
        if self._body.max_tokens == 0:
            return usage.model_copy(update={"completion_tokens": 0, "total_tokens": usage.prompt_tokens})
        return usage

    def chunk(self, pieces: Sequence[CompletionChoice], **usage: Usage | None) -> CompletionResponse:
        return self._head.model_copy(update={"choices": pieces, **usage})

    def complete(self, choices: Sequence[Sequence[CompletionChoice]], usage: Usage) -> CompletionResponse:
        return self._head.model_copy(update={"choices": [_whole(pieces) for pieces in choices], "usage": usage})


class _Writer:
    """Writes one completion, piece by piece."""

    def __init__(self, tokenizer: Tokenizer, body: CompletionRequest, prompt: _Prompt, index: int) -> None:
        self._tokenizer = tokenizer
        self._body = body
        self._prompt = prompt
        self._index = index
        self._logprobs = CompletionLogprobsWriter(tokenizer, body.logprobs or 0)
        self._begun = False

    def write(self, delta: Delta, of_prompt: Sequence[TokenLogprobs | None]) -> CompletionChoice:
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


def _whole(pieces: Sequence[CompletionChoice]) -> CompletionChoice:
    """The pieces of one completion, put together."""
    told = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return pieces[0].model_copy(
        update={
            "text": "".join(piece.text for piece in pieces),
            "logprobs": joined(told) if told else None,
            "finish_reason": pieces[-1].finish_reason,
        }
    )
