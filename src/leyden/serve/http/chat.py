"""``/v1/chat/completions``: conversations to answer, with calls of functions and formats of answers."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from leyden.serve.http.answer import GrowingResponse
from leyden.serve.http.body import JsonRoute
from leyden.serve.http.chat_messages import AssistantMessage, answered, encode_answered, encode_messages, text_of
from leyden.serve.http.errors import ApiError, responses
from leyden.serve.http.logprobs import chat_logprobs, prompt_logprobs
from leyden.serve.http.protocol.chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatEnd,
    ChatLogprobs,
    ChatPiece,
    ChatRequest,
    FunctionDelta,
    MessageDelta,
    ToolCallDelta,
)
from leyden.serve.http.protocol.common import Usage
from leyden.serve.http.response_format import answer_grammar
from leyden.serve.http.service import Service, new_id, owner_of
from leyden.serve.http.tool_parser import CallDelta, ToolParser
from leyden.serve.http.tools import ToolUse, gather
from leyden.serve.request import Delta
from leyden.serve.sampling import Sampling
from leyden.serve.threads import Threads
from leyden.tokenizer import Tokenizer


def chat_routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions", responses=responses(ChatCompletion, stream=True))
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        service.require()
        name = service.model.called(body.model)
        threads: Threads = request.state.threads
        prompt = await threads.run(_prompt, service, body)
        if body.conversation is not None:
            if service.conversations is None:
                raise ApiError(400, "This server keeps no conversations (--conversations).", param="conversation")
            if name in service.model.adapters:
                message = (
                    f"Conversations are kept of the model itself, and {name!r} is an adapter; leave conversation out."
                )
                raise ApiError(400, message, param="conversation")
            salt = service.salt(request, body.cache_salt, name)
            await service.conversations.open(owner_of(request), body.conversation, salt)
        return await _ChatAnswer(service, body, name, prompt, request).respond(
            request, body.stream, body.stream_options
        )

    return router


@dataclass(frozen=True)
class _ChatPrompt:
    """A conversation as the engine takes it."""

    tokens: list[int]
    sampling: Sampling
    tools: ToolUse


def _prompt(service: Service, body: ChatRequest) -> _ChatPrompt:
    model = service.model
    tools = ToolUse.of(body.tools, body.tool_choice, body.parallel_tool_calls)
    grammar = answer_grammar(body.response_format, body.constraint(), tools, model.tokenizer)
    goes_on = body.continue_final_message is True
    begins = body.add_generation_prompt
    tokens = encode_messages(
        model.tokenizer,
        body.messages,
        tools=tools.tools,
        add_generation_prompt=not goes_on if begins is None else begins,
        continue_final_message=goes_on,
        variables=body.chat_template_kwargs,
    )
    tokens += tools.opening(model.tokenizer)
    model.check(tokens, body.limit, "messages")
    limit = body.limit or model.context_tokens - len(tokens)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _ChatPrompt(tokens, body.sampling(limit, logprobs=logprobs, grammar=grammar), tools)


class _ChatAnswer(GrowingResponse[ChatPiece]):
    """The answers to one request."""

    def __init__(self, service: Service, body: ChatRequest, name: str, prompt: _ChatPrompt, request: Request) -> None:
        self._head: dict[str, Any] = {
            "id": new_id("chatcmpl"),
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": service.fingerprint,
        }
        tokenizer = service.model.tokenizer
        self._body = body
        self._service = service
        self._tools = prompt.tools.tools
        self._owner, self._salt = owner_of(request), service.salt(request, body.cache_salt, name)
        self._writers = [
            _Writer(tokenizer, body, index, prompt.tools.parser(tokenizer), forced=prompt.tools.forced is not None)
            for index in range(body.n or 1)
        ]
        self._tokenizer = tokenizer
        self._num_prompt_top = body.prompt_logprobs
        self._of_prompt: dict[str, Any] = {}
        # The cache reads not what was drawn but what the next turn will send of it.
        generation = service.generate(
            self._head["id"], [prompt.tokens], prompt.sampling, salt=self._salt, cache_completion=False
        )
        super().__init__(generation, len(self._writers), request.state.threads, large=body.prompt_logprobs is not None)

    @property
    def finished(self) -> bool:
        """All answers have made their one call; what the engine goes on to say is not told."""
        return all(writer.ended for writer in self._writers)

    def write(self, place: int, delta: Delta) -> ChatPiece | None:
        if delta.prompt_logprobs is not None and self._num_prompt_top is not None:
            told = prompt_logprobs(self._tokenizer, delta.prompt_logprobs, self._num_prompt_top)
            self._of_prompt = {"prompt_logprobs": told}
        return self._writers[delta.index].write(delta)

    def end(self) -> None:
        if len(self._writers) == 1:
            self._service.background.do(self._remember())

    async def _remember(self) -> None:
        """Let the engine read the chat as the next turn will begin, and keep it where it has a name."""
        body, service, answer = self._body, self._service, self._writers[0].message
        chat = answered(body.messages, answer, continue_final_message=body.continue_final_message is True)
        tokens = await self._threads.run(
            encode_answered, self._tokenizer, chat, tools=self._tools, variables=body.chat_template_kwargs
        )
        await service.loop.between_steps(lambda engine: engine.read_ahead(tokens, self._salt))
        if body.conversation is not None and service.conversations is not None:
            roles = {"developer": "system"}  # templates know no other
            turns = [{"role": roles.get(each.role, each.role), "content": text_of(each.content)} for each in chat]
            await service.conversations.save(self._owner, body.conversation, self._salt, tokens, turns)

    def chunk(self, pieces: Sequence[ChatPiece], **usage: Usage | None) -> ChatChunk:
        of_prompt, self._of_prompt = self._of_prompt, {}  # the first chunk alone tells of the prompt
        return ChatChunk(object="chat.completion.chunk", choices=list(pieces), **self._head, **usage, **of_prompt)

    def complete(self, choices: Sequence[Sequence[ChatPiece]], usage: Usage) -> ChatCompletion:
        whole = [writer.whole(pieces) for writer, pieces in zip(self._writers, choices, strict=True)]
        return ChatCompletion(object="chat.completion", choices=whole, usage=usage, **self._head, **self._of_prompt)


class _Writer:
    """Writes one answer, piece by piece.

    Attributes:
        ended: whether it told why it ended.
    """

    def __init__(
        self, tokenizer: Tokenizer, body: ChatRequest, index: int, parser: ToolParser | None, *, forced: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._num_top = (body.top_logprobs or 0) if body.logprobs else None
        self._index = index
        self._parser = parser
        self._forced = forced
        self._parts: list[str | CallDelta] = []
        self._begun = False
        self.ended = False

    def write(self, delta: Delta) -> ChatPiece | None:
        """The piece that ``delta`` makes.

        Raises:
            ApiError: the answer has ended before the call that it had to make.
        """
        if self.ended or not (delta.tokens or delta.text or delta.finish_reason):
            return None
        parts = self._taken_apart(delta)
        if self._forced and delta.finish_reason and self._parser is not None and not self._parser.num_calls:
            field = "max_completion_tokens" if delta.finish_reason == "length" else "stop"
            raise ApiError(
                400,
                f'The answer ended (finish_reason "{delta.finish_reason}") before the call that "tool_choice" asks for '
                'had begun. Allow more tokens, and give no "stop" that a call may contain.',
                param=field,
                code="call_cut_off",
            )
        self._parts += parts
        end = self._end(delta)
        self.ended = end is not None
        logprobs = None
        if self._num_top is not None:
            logprobs = ChatLogprobs(content=chat_logprobs(self._tokenizer, delta.logprobs, self._num_top), refusal=None)
        return ChatPiece(index=self._index, delta=self._message(parts), logprobs=logprobs, finish_reason=end)

    @property
    def message(self) -> AssistantMessage:
        """The answer so far, as a client sends it with the next turn."""
        text, calls = gather(self._parts)
        return AssistantMessage(role="assistant", content=text, tool_calls=calls or None)

    def whole(self, pieces: Sequence[ChatPiece]) -> ChatChoice:
        """The answer, of all its pieces."""
        text, calls = gather(self._parts)
        told = [place for piece in pieces if piece.logprobs is not None for place in piece.logprobs.content]
        message = {"tool_calls": calls} if calls else {}
        end = pieces[-1].finish_reason
        assert end is not None, "the last piece tells why"
        return ChatChoice(
            index=self._index,
            message=AnswerMessage(role="assistant", content=text, refusal=None, **message),
            logprobs=None if self._num_top is None else ChatLogprobs(content=told, refusal=None),
            finish_reason=end,
        )

    def _taken_apart(self, delta: Delta) -> list[str | CallDelta]:
        if self._parser is None:
            return [delta.text] if delta.text else []
        parts = self._parser.push(delta.text)
        return parts + self._parser.finish() if delta.finish_reason is not None else parts

    def _end(self, delta: Delta) -> ChatEnd | None:
        if self._parser is not None and self._parser.num_calls and (self._parser.done or delta.finish_reason == "stop"):
            return "tool_calls"
        return "length" if delta.finish_reason == "length" else "stop" if delta.finish_reason else None

    def _message(self, parts: Sequence[str | CallDelta]) -> MessageDelta:
        message: dict[str, Any] = {} if self._begun else {"role": "assistant"}
        self._begun = True
        text = "".join(part for part in parts if isinstance(part, str))
        calls = [_call_delta(part) for part in parts if isinstance(part, CallDelta)]
        if calls:
            message["tool_calls"] = calls
        if text or not calls:
            message["content"] = text
        return MessageDelta(**message)


def _call_delta(part: CallDelta) -> ToolCallDelta:
    """OpenAI's shape: what a call is named comes once."""
    if part.id is None:
        return ToolCallDelta(index=part.index, function=FunctionDelta(arguments=part.arguments))
    function = FunctionDelta(name=part.name, arguments=part.arguments)
    return ToolCallDelta(index=part.index, id=part.id, type="function", function=function)
