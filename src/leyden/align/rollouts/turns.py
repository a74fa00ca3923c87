"""Rollouts of one turn or several: the model answers, the environment replies, and the model goes on.

What the environment said is in the rollout as tokens that the model did not draw: they carry no loss, and no
log-probability of theirs counts. The next answer is drawn behind exactly the tokens that were drawn before, and not
behind their text tokenised anew, so that the trainer reads what the engine has read. In the same way a rollout that was
set aside in the middle of an answer goes on in a later round (partial rollouts of Kimi k1.5, arXiv 2501.12599, section
2.6): nothing but its tokens is kept, which newer weights read anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import numpy as np

from leyden.align.chats.chat import prompt_of
from leyden.align.rollouts.call_limit import CallLimit
from leyden.align.rollouts.environment import Environment
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


def replying(environment: Environment) -> Replying:
    """The same environment.

    Raises:
        UserError: it does not reply.
    """
    if not isinstance(environment, Replying):
        raise UserError(
            f"max_turns is above 1, and {type(environment).__name__} has no method reply(row, answers); give it one, "
            "or leave max_turns out."
        )
    return environment


@dataclass
class Drawn:
    """A rollout that is being drawn.

    Attributes:
        prompt: what it goes on from.
        place: of the prompt among all that are asked.
        member: its number among the rollouts of the prompt.
        began: the optimizer step that would have been the first to learn from it.
        tokens: behind the prompt.
        learned, log_probs: of each, whether the model drew it, and with which log-probability under the model's own
            distribution, as the engine computed it (else 0).
        kept: of the tokens that earlier weights drew, which come first: their log-probabilities under the policy that
            drew them, as the trainer computed them.
        answers, replies: in turn; whole answers alone.
        answer_from: where in the tokens the answer begins that is not whole yet; None: the last one is whole.
        rounds: in how many it was drawn.
        is_over: whether the environment ended it, or it has the one answer that it may have.
        is_cut: whether ``max_tokens`` ended it, what the environment said included.
        out_of_turns, out_of_rounds: whether ``max_turns`` did, or ``max_rounds``.
        error: why it could not be finished.
        timed_out: whether it is that the environment took too long.
    """

    prompt: Prompt
    place: int = 0
    member: int = 0
    began: int = 0
    tokens: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    answer_from: int | None = 0
    rounds: int = 0
    is_over: bool = False
    is_cut: bool = False
    out_of_turns: bool = False
    out_of_rounds: bool = False
    error: str | None = None
    timed_out: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is drawn of it."""
        return self.is_over or self.is_cut or self.out_of_turns or self.out_of_rounds or self.error is not None

    @property
    def drawn_with(self) -> tuple[int, int]:
        """The same for rollouts that begin one prompt, and of none else."""
        return self.place, self.member if self.tokens else -1

    def take(self, made: Completion, asked: int, settings: RolloutSettings, tokenizer: Tokenizer | None) -> None:
        """Go on by what the engine made of ``asked`` tokens at most."""
        is_whole_piece = self.answer_from == len(self.tokens)
        self.tokens += made.tokens
        self.learned += [True] * len(made.tokens)
        self.log_probs += [token.logprob for token in made.logprobs]
        self.error = made.error
        if made.finish_reason == "length":
            # Fewer than were asked for: the model has no further position.
            self.is_cut = len(self.tokens) >= settings.max_tokens or len(made.tokens) < asked
            if not self.is_cut:
                return
        self._close(made.text if is_whole_piece else None, tokenizer, without_last=made.finish_reason == "stop")

    def hear(self, reply: str, tokens: Sequence[int]) -> None:
        """Go on by what the environment said, laid out by the template."""
        self.tokens += tokens
        self.learned += [False] * len(tokens)
        self.log_probs += [0.0] * len(tokens)
        self.replies.append(reply)
        self.answer_from = len(self.tokens)

    def end_round(self, max_rounds: int | None, tokenizer: Tokenizer | None) -> None:
        """Count a round in which it was drawn, and end it where that was the last one it may have."""
        self.rounds += 1
        if self.has_ended or max_rounds is None or self.rounds < max_rounds:
            return
        self.out_of_rounds = True
        if self.answer_from is not None and self.answer_from < len(self.tokens):
            self._close(None, tokenizer)

    def _close(self, text: str | None, tokenizer: Tokenizer | None, *, without_last: bool = False) -> None:
        """The answer is whole. Its text is decoded anew where it came in pieces, which may end within a character."""
        if text is None:
            ids = self.tokens[self.answer_from : -1 if without_last else None]
            text = "" if tokenizer is None else tokenizer.decode(ids, skip_special=True)
        self.answers.append(text)
        self.answer_from = None

    @property
    def text(self) -> str:
        """The whole rollout for people."""
        said = [text for pair in zip(self.answers, [*self.replies, ""], strict=False) for text in pair]
        return "\n".join(filter(None, said))


def go_on(
    engine: Engine,
    environment: Environment,
    rollouts: Sequence[Drawn],
    settings: RolloutSettings,
    limit: CallLimit,
    *,
    seed: int,
    temperature: float | None = None,
    budget: int | None = None,
) -> None:
    """Draw rollouts until the environment ends them, a limit does, or each has ``budget`` more tokens than before.

    Those of one prompt that have no token yet, and follow each other, are drawn together and read it once.

    Args:
        engine: draws.
        environment: replies, where ``max_turns`` is above 1.
        rollouts: are added to; those that have ended stay as they are.
        settings: ``max_turns`` answers of a rollout, and ``max_tokens`` behind its prompt, at most.
        limit: of the time that a reply may take.
        seed: of all that is drawn; what is drawn of a rollout follows from it, its place, its member, what it has
            already, and the weights.
        temperature: of the drawing; None: that of the settings.
        budget: None: a rollout goes on to its end.

    Raises:
        UserError: the environment does not reply or is broken, or the template lays out no reply behind an answer.
    """
    speaker = replying(environment) if settings.max_turns > 1 else None
    temperature = settings.temperature if temperature is None else temperature
    most = [settings.max_tokens if budget is None else len(one.tokens) + budget for one in rollouts]
    while True:
        for one in rollouts:
            if one.answer_from is None and not one.has_ended:
                _hear_reply(engine.tokenizer, speaker, one, settings, limit)
        going = [
            (one, min(settings.max_tokens, bound) - len(one.tokens))
            for one, bound in zip(rollouts, most, strict=True)
            if not one.has_ended and len(one.tokens) < bound
        ]
        if not going:
            return
        prompts, sampling = list[Sequence[int]](), list[Sampling]()
        for _, together in groupby(going, lambda given: given[0].drawn_with):
            (one, asked), *others = together
            prompts.append([*one.prompt.tokens, *one.tokens])
            n, own = 1 + len(others), _seed(seed, one, settings)
            sampling.append(Sampling(max_tokens=asked, n=n, temperature=temperature, seed=own, logprobs=0))
        for (one, asked), made in zip(going, engine.generate(prompts, sampling), strict=True):
            one.take(made, asked, settings, engine.tokenizer)


def _hear_reply(
    tokenizer: Tokenizer | None, speaker: Replying | None, one: Drawn, settings: RolloutSettings, limit: CallLimit
) -> None:
    """Let the environment reply to a rollout whose last answer is whole, or end it."""
    try:
        reply = None if speaker is None else limit.call(speaker.reply, one.prompt.row, tuple(one.answers))
    except TimeIsUp as late:
        one.error, one.timed_out = f"reply: {late}", True
        return
    if reply is None:
        one.is_over = True
        return
    if len(one.answers) == settings.max_turns:
        one.out_of_turns = True
        return
    if tokenizer is None:
        raise UserError("turns need a tokenizer with a chat template; give the engine one.")
    between = _between(tokenizer, one, reply)
    if len(one.tokens) + len(between) >= settings.max_tokens:
        one.is_cut = True
        return
    one.hear(reply, between)


def _seed(seed: int, one: Drawn, settings: RolloutSettings) -> int:
    """Of what is drawn next of a rollout; of all that begin a prompt together, the one of the prompt."""
    words = [seed, one.place]
    if one.tokens:
        words = [seed, one.place * settings.group_size + one.member, len(one.answers)]
        words += [len(one.tokens)] * (one.answer_from != len(one.tokens))
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(2))


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
