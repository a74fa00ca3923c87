"""Requests to an engine, and the deltas with which it answers."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from leyden.core.errors import UserError, suggest
from leyden.model import HybridLM, ModelConfig
from leyden.serve.inserts import Insert
from leyden.serve.sampling import Sampling, TokenLogprobs
from leyden.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "aborted", "error"]


class QueueFullError(Exception):
    """Too many requests wait already; the message says how many, and when to try again."""


@dataclass(eq=False)
class Request:
    """A prompt and what is wanted of it.

    Attributes:
        tokens: the prompt, at least one token.
        sampling: how to go on from it; ``n`` completions of it.
        id: unique among those that the engine has.
        priority: lower ones are admitted first; equal ones in order of arrival.
        arrived: on :func:`time.perf_counter`'s clock.
        cache_completion: read the completion once more in parts when there is nothing else to do, for the prefix
            cache: the next turn of a chat goes on from there. What decoding computed has other roundings, and is not
            kept.
        watched: somebody waits for every token. As long as nobody does, steps read more at once.
        salt: by :func:`salted`, which also says the adapter. Requests with the same one share what was read of their
            texts, and no others do: neither what a client is told of the cache nor the time it waits says anything of
            the texts under other salts.
        inserts: vectors that stand in the place of tokens of the prompt, in order. Prefixes of the same tokens are
            shared only where their inserts have the same digests.
        on_delta: is called with each delta of the request, in the thread that steps the engine. The step's caller is
            then not given them.
    """

    tokens: Sequence[int]
    sampling: Sampling
    id: str
    priority: int = 0
    arrived: float = field(default_factory=time.perf_counter)
    cache_completion: bool = True
    watched: bool = True
    salt: str = ""
    on_delta: "Callable[[Delta], None] | None" = None
    inserts: Sequence[Insert] = ()


_BEHIND_ADAPTER = "\0"


def salted(adapter: str, salt: str = "") -> str:
    """The salt of a request that is computed with ``adapter`` (``""``: with the model itself).

    What was read with one adapter is of no use to another; so the salt, which separates texts in the prefix cache,
    names it.

    Args:
        adapter: of :class:`leyden.model.AdapterSet`; without a NUL.
        salt: what else separates the request's texts from others.
    """
    return f"{adapter}{_BEHIND_ADAPTER}{salt}" if adapter or _BEHIND_ADAPTER in salt else salt


def adapter_of(salt: str) -> str:
    """The adapter of :func:`salted`."""
    adapter, separator, _ = salt.partition(_BEHIND_ADAPTER)
    return adapter if separator else ""


@dataclass(frozen=True)
class CacheUse:
    """What of a prompt had been read before.

    Attributes:
        possible: tokens of its beginning that some earlier text shared, in whole pages.
        used: tokens that were not read again.
        lost: why the others were: tokens by reason (``"no_snapshot"``: keys and values were there, a state was not;
            ``"evicted"``: both had made room for others).
    """

    possible: int = 0
    used: int = 0
    lost: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestUsage:
    """What a request cost so far.

    Attributes:
        prompt_tokens: of the prompt.
        completion_tokens: drawn, all completions together.
        cache: what of the prompt was not read again.
        queued_seconds: from arrival to admission.
        prefill_seconds: from admission to the logits of the first token.
        decode_seconds: from there on.
    """

    prompt_tokens: int
    completion_tokens: int
    cache: CacheUse
    queued_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclass
class Delta:
    """What one step brought for one completion of a request.

    Attributes:
        request: the id.
        index: which of its ``n`` completions.
        text: what became certain.
        tokens: what was drawn, in order; several where guesses were right, none while the prompt is read.
        logprobs: of ``tokens``, where asked for.
        prompt_logprobs: of the prompt's tokens, None for the first, where asked for; once, with the first delta.
        read_tokens: of the prompt, how many have been read.
        finish_reason: None while it goes on.
        usage: with every delta that ends a completion.
        error: what went wrong, where the reason is ``"error"``; in the user's words.
        weights_version: which weights of the engine made it (:attr:`leyden.serve.Engine.weights_version`).
    """

    request: str
    index: int = 0
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    read_tokens: int = 0
    finish_reason: FinishReason | None = None
    usage: RequestUsage | None = None
    error: str | None = None
    weights_version: int = 0


def check_adapter(model: HybridLM, salt: str) -> None:
    """Refuse a request for an adapter that the engine's model has not.

    Raises:
        UserError: it has others, or none.
    """
    asked, known = adapter_of(salt), () if model.adapters is None else model.adapters.names
    if asked and asked not in known:
        there = f"it has {', '.join(known)}" if known else "it has none (leyden.serve.adapters.add_adapters)"
        raise UserError(f"there is no adapter {asked!r} on this engine's model{suggest(asked, known)}; {there}.")


def check_request(
    shape: ModelConfig, tokenizer: Tokenizer | None, max_tokens: int, tokens: Sequence[int], sampling: Sampling
) -> None:
    """Refuse what an engine could never answer.

    Args:
        shape: of its model.
        tokenizer: None where there is no text.
        max_tokens: that one sequence has memory for.
        tokens: of the prompt.
        sampling: what is wanted.

    Raises:
        UserError: what is wrong, and what is allowed.
    """
    if tokenizer is None and (sampling.stop or sampling.grammar is not None):
        what = "stop strings" if sampling.stop else "grammar"
        raise UserError(f"this engine has no tokenizer and sees no text; leave out sampling's {what}.")
    sampling.check_tokens(shape.vocab_size)
    if not tokens:
        raise UserError("a prompt has at least one token; this one has none.")
    if len(tokens) > shape.max_position_embeddings:
        raise UserError(
            f"the text has {len(tokens)} tokens and the model {shape.max_position_embeddings} positions "
            "(max_position_embeddings); shorten it, or take a model trained for longer contexts."
        )
    if len(tokens) > max_tokens:
        raise UserError(
            f"the text has {len(tokens)} tokens, and this engine has pages of keys and values for {max_tokens}; "
            "shorten it, or raise kv_gigabytes."
        )
    if not 0 <= min(tokens) <= max(tokens) < shape.vocab_size:
        wrong = next(token for token in tokens if not 0 <= token < shape.vocab_size)
        raise UserError(f"token {wrong} is not in the model's vocabulary; ids lie in 0..{shape.vocab_size - 1}.")
