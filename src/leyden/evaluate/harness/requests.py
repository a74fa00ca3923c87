"""The harness's requests as questions, and answers as its responses.

A request is a likelihood (a context and its continuation), a rolling likelihood (a text) or a generation (a context
and how to end). A context is a text, or a chat (:class:`ChatContext`). What is longer than the model's positions loses
its beginning, as the harness asks of every model; how many tokens is said.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from leyden.core.errors import UserError
from leyden.evaluate.rows import digest
from leyden.evaluate.task import Question, Row, Subject

_MAX_TOKENS = 256
"""Of an answer, where the task does not say."""
_CONTEXTS = 256
"""Whose tokens are kept: the answers to one question follow each other."""
_UNKNOWN_POSITIONS = 2048
"""Tokens of a window of a text, where nobody says how many positions the model has."""

Response = tuple[float, bool] | float | str
"""(log-probability, whether it is what the model would say) of a likelihood, the log-probability of a text, a text."""


class ChatContext(str):
    """A context that is the turns of a chat, as JSON."""

    @property
    def turns(self) -> list[dict[str, str]]:
        """What was said."""
        return json.loads(self)


@dataclass(frozen=True)
class AskedQuestion:
    """A question of a request.

    Attributes:
        question: as a source is asked.
        cut_tokens: how many tokens of the request were left out at its beginning, as the model has no room.
    """

    question: Question
    cut_tokens: int = 0


def request_id(kind: str, arguments: Sequence[Any]) -> str:
    """A name that no other request has: equal requests are asked once."""
    return digest({"kind": kind, "arguments": list(arguments)})


class Requests:
    """Makes questions of requests for one model.

    Args:
        subject: the model.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._context = functools.lru_cache(maxsize=_CONTEXTS)(subject.tokenizer.encode)

    def questions(self, kind: str, arguments: Sequence[Any]) -> list[AskedQuestion]:
        """What a source has to be asked: one question, or one for each window of a long text.

        Args:
            kind: ``"loglikelihood"``, ``"loglikelihood_rolling"`` or ``"generate_until"``.
            arguments: of the request, as the harness gives them.

        Raises:
            UserError: the request cannot be asked of this model.
        """
        if kind == "loglikelihood":
            return [self._likelihood(*self.pair(*arguments))]
        if kind == "loglikelihood_rolling":
            return self._rolling(arguments[0])
        if kind == "generate_until":
            return [self._generation(*arguments)]
        raise UserError(f"lm-eval asks for '{kind}', which Leyden's models do not answer.")

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a context, with the one that begins a document, and of its continuation.

        Spaces at the end of a context go to the continuation, which is cut where the context's own tokens end.
        """
        tokenizer = self._subject.tokenizer
        if isinstance(context, ChatContext):
            return tokenizer.encode_chat(context.turns), tokenizer.encode(continuation)
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        before = self._context(bare)
        return [tokenizer.bos_id, *before], tokenizer.encode(bare + continuation)[len(before) :]

    def _likelihood(self, context: Sequence[int], continuation: Sequence[int]) -> AskedQuestion:
        if not continuation:
            raise UserError(f"{self._subject.name}: lm-eval asks for the likelihood of a continuation without tokens.")
        tokens = [*context, *continuation]
        positions = self._subject.positions
        cut = 0 if positions is None else max(0, len(tokens) - 1 - positions)
        scored = min(len(continuation), len(tokens) - cut - 1)
        return AskedQuestion(Question(tokens[cut:], greedy=True, scored=scored), cut)

    def _rolling(self, text: str) -> list[AskedQuestion]:
        """Windows that foretell every token once, each with as much before it as the model reads at once."""
        windows = get_rolling_token_windows(
            token_list=self._subject.tokenizer.encode(text),
            prefix_token=self._subject.tokenizer.bos_id,
            max_seq_len=self._subject.positions or _UNKNOWN_POSITIONS,
            context_len=1,
        )
        return [self._likelihood(*map(list, make_disjoint_window(window))) for window in windows]

    def _generation(self, context: str, settings: dict[str, Any]) -> AskedQuestion:
        stop, max_tokens = _generation_settings(settings)
        if isinstance(context, ChatContext):
            return AskedQuestion(Question(context.turns, max_tokens=max_tokens, stop=stop))
        tokenizer, positions = self._subject.tokenizer, self._subject.positions
        tokens = [tokenizer.bos_id, *tokenizer.encode(context)]
        if positions is not None and max_tokens >= positions:
            raise UserError(
                f"lm-eval asks for answers of {max_tokens} tokens, and {self._subject.name} has {positions} positions "
                "(max_position_embeddings); take a task with shorter answers, or a model for longer contexts."
            )
        cut = 0 if positions is None else max(0, len(tokens) + max_tokens - positions)
        return AskedQuestion(Question(tokens[cut:], max_tokens=max_tokens, stop=stop), cut)


def response_of(kind: str, rows: Iterable[Row]) -> Response:
    """What the harness is told of a request, by the rows of its questions in order."""
    rows = list(rows)
    if kind == "generate_until":
        return rows[0]["answer"]
    logprob = sum(row["score"] for row in rows)
    return logprob if kind == "loglikelihood_rolling" else (logprob, rows[0]["greedy"])


def _generation_settings(settings: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Where an answer ends, and how many tokens it has at most.

    Raises:
        UserError: the task draws its answers, and Leyden's are the most probable tokens.
    """
    if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
        raise UserError(
            f"lm-eval asks for answers that are drawn (temperature {settings.get('temperature', 1.0):g}); Leyden "
            "answers with the most probable tokens. Set do_sample: false in the task's generation_kwargs."
        )
    until = settings.get("until") or []
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    tokens = settings.get("max_gen_toks") or settings.get("max_new_tokens") or settings.get("max_tokens")
    return stop, int(tokens or _MAX_TOKENS)
