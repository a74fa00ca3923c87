"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``, with vLLM's JSON."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from pydantic import BaseModel, Discriminator, Field, JsonValue, Tag

from leyden.serve.http.answer import json_text
from leyden.serve.http.body import JsonRoute
from leyden.serve.http.chat_messages import encode_messages
from leyden.serve.http.errors import responses
from leyden.serve.http.protocol.chat import Messages
from leyden.serve.http.protocol.common import TokenIds, Wire
from leyden.serve.http.service import ServedModel, Service
from leyden.serve.http.tools import Tools, ToolUse
from leyden.serve.threads import Threads
from leyden.tokenizer import Tokenizer

_ERRORS = (400, 401, 403, 404, 413, 415, 503)


class TokenizeText(Wire):
    """A text to be told as tokens."""

    model: str | None = None
    """One of the names of the served model."""
    prompt: str
    """The text. The spelling of a special token in it becomes that token, as in vLLM; in the prompt of a completion it
    stays text."""
    add_special_tokens: bool | None = None
    """Whether the token that begins a document comes first; true where left out."""
    return_token_strs: bool | None = None
    """Whether each token's text is told, too."""


class TokenizeChat(Wire):
    """A conversation to be told as the tokens that the model would read."""

    model: str | None = None
    """One of the names of the served model."""
    messages: Messages
    """The conversation."""
    tools: Tools | None = None
    """Functions that the answer may call."""
    add_generation_prompt: bool | None = None
    """Whether the tokens end where an answer begins; true where left out, unless the last message goes on."""
    continue_final_message: bool | None = None
    """Whether they end with the text of the last message."""
    chat_template_kwargs: dict[str, JsonValue] | None = Field(default=None, max_length=64)
    """Variables for the chat template."""
    return_token_strs: bool | None = None
    """Whether each token's text is told, too."""


def _kind(value: Any) -> str:
    return "chat" if isinstance(value, dict) and "messages" in value else "text"


TokenizeRequest = Annotated[
    Annotated[TokenizeText, Tag("text")] | Annotated[TokenizeChat, Tag("chat")], Discriminator(_kind)
]


class TokenizeResponse(BaseModel):
    """The tokens, and how many the model can read."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Wire):
    """Tokens to be told as text."""

    model: str | None = None
    """One of the names of the served model."""
    tokens: TokenIds
    """Their ids."""


class DetokenizeResponse(BaseModel):
    """The text, special tokens by their spelling."""

    prompt: str


class TokenizerInfo(BaseModel):
    """What transformers' ``tokenizer_config.json`` would say."""

    tokenizer_class: str
    bos_token: str
    eos_token: str
    additional_special_tokens: list[str]
    chat_template: str | None
    model_max_length: int
    vocab_size: int


def tokenizer_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=JsonRoute)
    model = service.model

    @router.post("/tokenize", responses=responses(TokenizeResponse, errors=_ERRORS))
    async def tokenize(body: Annotated[TokenizeRequest, Body()], request: Request) -> Response:
        """The tokens of a text or of a conversation."""
        model.called(body.model)
        return await _respond(request, _tokenized, model, body)

    @router.post("/detokenize", responses=responses(DetokenizeResponse, errors=_ERRORS))
    async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
        """The text of tokens."""
        model.called(body.model)
        return await _respond(request, _detokenized, model, body)

    @router.get("/tokenizer_info", responses=responses(TokenizerInfo, errors=(401, 403)))
    async def tokenizer_info() -> TokenizerInfo:
        """The special tokens and the chat template."""
        return _info(model.tokenizer, model.context_tokens)

    return router


async def _respond(request: Request, make: Callable[..., BaseModel], *arguments: Any) -> Response:
    """What ``make`` makes, as JSON; all in a thread."""
    threads: Threads = request.state.threads
    return Response(await threads.run(lambda: json_text(make(*arguments))), media_type="application/json")


def _tokenized(model: ServedModel, body: TokenizeText | TokenizeChat) -> TokenizeResponse:
    tokens = _tokens(model.tokenizer, body)
    texts = [model.tokenizer.decode([token]) for token in tokens] if body.return_token_strs else None
    return TokenizeResponse(count=len(tokens), max_model_len=model.context_tokens, tokens=tokens, token_strs=texts)


def _detokenized(model: ServedModel, body: DetokenizeRequest) -> DetokenizeResponse:
    model.check_vocabulary(body.tokens, "tokens")
    return DetokenizeResponse(prompt=model.tokenizer.decode(body.tokens))


def _tokens(tokenizer: Tokenizer, body: TokenizeText | TokenizeChat) -> list[int]:
    if isinstance(body, TokenizeText):
        begin = [] if body.add_special_tokens is False else [tokenizer.bos_id]
        return begin + tokenizer.encode(body.prompt, allow_special=True)
    goes_on = body.continue_final_message is True
    return encode_messages(
        tokenizer,
        body.messages,
        tools=ToolUse.of(body.tools, None, None).tools,
        add_generation_prompt=not goes_on if body.add_generation_prompt is None else body.add_generation_prompt,
        continue_final_message=goes_on,
        variables=body.chat_template_kwargs,
    )


def _info(tokenizer: Tokenizer, context_tokens: int) -> TokenizerInfo:
    spelling = {index: token for token, index in tokenizer.special_tokens.items()}
    named = (tokenizer.bos_id, tokenizer.eos_id)
    return TokenizerInfo(
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token=spelling[tokenizer.bos_id],
        eos_token=spelling[tokenizer.eos_id],
        additional_special_tokens=[token for index, token in spelling.items() if index not in named],
        chat_template=tokenizer.chat_template,
        model_max_length=context_tokens,
        vocab_size=tokenizer.vocab_size,
    )
