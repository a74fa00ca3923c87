"""Rollouts of several turns: the model answers, the environment replies, and the model goes on.

What the environment said is in the rollout as tokens that the model did not draw: they carry no loss, and no
log-probability of theirs counts. The next answer is drawn behind exactly the tokens that were drawn before, and not
behind their text tokenised anew, so that the trainer reads what the engine has read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from leyden.align.chats.chat import prompt_of
from leyden.align.rollouts.call_limit import CallLimit
from leyden.align.rollouts.prompts import Prompt
from leyden.align.rollouts.settings import RolloutSettings
from leyden.core.alarm import TimeIsUp
from leyden.core.errors import UserError
from leyden.serve import Engine, Sampling
from leyden.serve.completion import Completion
from leyden.tokenizer import Tokenizer

_PLACEHOLDER = "x"
"""Stands for an answer where only what the template writes behind it is asked for."""


@runtime_checkable
class Replying(Protocol):
    """An environment with a third method: what a tool, or a user, says to an answer."""

    def reply(self, row: Mapping[str, Any], answers: Sequence[str], /) -> str | None:
        """The next message; None where the last of ``answers`` ends the rollout. It follows from its arguments."""
        ...


@dataclass
class Drawn:
    """A rollout that is being drawn.

    Attributes:
        prompt: what it goes on from.
        tokens: behind the prompt.
        learned, log_probs: of each, whether the model drew it, and with which log-probability (else 0).
        answers, replies: in turn.
        is_cut: whether ``max_tokens`` ended it, what the environment said included.
        out_of_turns: whether ``max_turns`` ended it.
        error: why it could not be finished.
        timed_out: whether it is that the environment took too long.
    """

    prompt: Prompt
    tokens: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    is_cut: bool = False
    out_of_turns: bool = False
    error: str | None = None
    timed_out: bool = False

    def take(self, made: Completion) -> None:
        """Go on by an answer."""
        self.tokens += made.tokens
        self.learned += [True] * len(made.tokens)
        self.log_probs += [token.logprob for token in made.logprobs]
        self.answers.append(made.text)
        self.is_cut = made.finish_reason == "length"
        self.error = made.error

    def hear(self, reply: str, tokens: Sequence[int]) -> None:
        """Go on by what the environment said, laid out by the template."""
        self.tokens += tokens
        self.learned += [False] * len(tokens)
        self.log_probs += [0.0] * len(tokens)
        self.replies.append(reply)

    @property
    def text(self) -> str:
        """The whole rollout for people."""
        said = [text for pair in zip(self.answers, [*self.replies, ""], strict=False) for text in pair]
        return "\n".join(filter(None, said))


def take_turns(
    engine: Engine,
    environment: Replying,
    rollouts: Sequence[Drawn],
    settings: RolloutSettings,
    limit: CallLimit,
    *,
    seed: int,
    places: Sequence[int],
    temperature: float | None = None,
) -> None:
    """Let rollouts whose first answer is drawn go on until the environment ends them, or a limit does.

    Args:
        engine: draws.
        environment: replies.
        rollouts: are added to.
        settings: ``max_turns`` answers of a rollout, and ``max_tokens`` behind its prompt, at most.
        limit: of the time that a reply may take.
        seed, places: of what is drawn; each rollout has a place of its own.
        temperature: of the drawing; None: that of the settings.

    Raises:
        UserError: the engine has no tokenizer, the template lays out no reply behind an answer, or the environment
            hangs.
    """
    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise UserError("turns need a tokenizer with a chat template; give the engine one.")
    temperature = settings.temperature if temperature is None else temperature
    for turn in range(1, settings.max_turns + 1):
        going: list[tuple[Drawn, int]] = []
        for one, place in zip(rollouts, places, strict=True):
            if one.is_cut or one.out_of_turns or one.error is not None or len(one.answers) < turn:
                continue
            try:
                reply = limit.call(environment.reply, one.prompt.row, tuple(one.answers))
            except TimeIsUp as late:
                one.error, one.timed_out = f"reply: {late}", True
                continue
            if reply is None:
                continue
            if turn == settings.max_turns:
                one.out_of_turns = True
                continue
            between = _between(tokenizer, one, reply)
            if len(one.tokens) + len(between) >= settings.max_tokens:
                one.is_cut = True
                continue
            one.hear(reply, between)
            going.append((one, place))
        if not going:
            return
        sampling = [
            Sampling(
                max_tokens=settings.max_tokens - len(one.tokens),
                temperature=temperature,
                seed=int(np.random.SeedSequence([seed, place, turn]).generate_state(1, np.uint64)[0] >> np.uint64(2)),
                logprobs=0,
            )
            for one, place in going
        ]
        made = engine.generate([[*one.prompt.tokens, *one.tokens] for one, _ in going], sampling)
        for (one, _), answer in zip(going, made, strict=True):
            one.take(answer)


def _between(tokenizer: Tokenizer, one: Drawn, reply: str) -> list[int]:
    """What the template writes from the end of an answer to the beginning of the next, with a reply between them.

    Raises:
        UserError: it cannot be told.
    """
    messages = list(prompt_of(one.prompt.row))
    chat = [*messages, {"role": "assistant", "content": _PLACEHOLDER}, {"role": "user", "content": reply}]
    whole = tokenizer.encode_chat(chat)
    ids, writers = tokenizer.encode_answers(chat)
    behind = int(np.flatnonzero(writers == len(messages))[-1]) + 1
    if whole[:behind] != ids[:behind].tolist():
        raise UserError("the chat template writes an answer otherwise where a reply follows; take another template.")
    return whole[behind:]
