"""Answers of a model in this process."""

from collections.abc import Iterator, Sequence

import numpy as np

from leyden.core.errors import UserError
from leyden.evaluate.likelihood import Window, window_nats
from leyden.evaluate.sources.source import ReadProgress
from leyden.evaluate.task import Answer, Question
from leyden.model import HybridLM
from leyden.serve import Completion, Engine, EngineConfig, Sampling
from leyden.serve.conversation import fingerprint
from leyden.tokenizer import Tokenizer


class EngineSource:
    """Generates with an engine, and computes likelihoods by the model itself.

    Args:
        model: the weights.
        tokenizer: the model's.
        config: memory and work of the engine; its defaults where None.
    """

    def __init__(self, model: HybridLM, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
        self._engine = Engine(model, tokenizer, config)
        self._tokenizer = tokenizer
        self.identity = f"model {fingerprint(model, tokenizer)}"
        self._likelihood_tokens = 0

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """See :class:`leyden.evaluate.sources.source.Source`.

        What several prompts begin with is read first and by itself, so that all of them go on from there.
        """
        generating = [index for index, question in enumerate(questions) if question.max_tokens]
        compared = [index for index, question in enumerate(questions) if not question.max_tokens and question.greedy]
        plain = [index for index, question in enumerate(questions) if not question.max_tokens and not question.greedy]
        for indices, answer in ((generating, self._generated), (compared, self._compared), (plain, self._likelihoods)):
            if indices:
                yield from zip(indices, answer([questions[index] for index in indices]), strict=True)

    @property
    def reading(self) -> ReadProgress:
        """By the engine's own statistics."""
        statistics = self._engine.statistics
        return ReadProgress(
            statistics.prompt_tokens + self._likelihood_tokens, statistics.prefill_tokens + self._likelihood_tokens
        )

    def _generated(self, questions: Sequence[Question]) -> Iterator[Answer]:
        prompts = [self._tokens(question) for question in questions]
        samplings = [Sampling(max_tokens=question.max_tokens, temperature=0.0) for question in questions]
        for prompt, sampling in zip(prompts, samplings, strict=True):
            self._engine.check(prompt, sampling)
        for beginning in _common_beginnings(prompts):
            self._engine.read_ahead(beginning)
            self._engine.rest()
        for completion in self._engine.generate(prompts, samplings):
            yield Answer(_whole(completion).text, completion.prompt_tokens)

    def _compared(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Likelihoods, with the most probable token in each place, as the engine reports them."""
        sampling = Sampling(max_tokens=1, temperature=0.0, prompt_logprobs=1)
        for completion in self._engine.generate([self._tokens(question) for question in questions], sampling):
            told = [entry for entry in _whole(completion).prompt_logprobs or () if entry is not None]
            yield Answer(
                "",
                completion.prompt_tokens,
                np.array([-entry.logprob for entry in told]),
                np.array([entry.token == entry.top[0][0] for entry in told]),
            )

    def _likelihoods(self, questions: Sequence[Question]) -> Iterator[Answer]:
        windows = []
        for question in questions:
            ids = np.asarray(self._tokens(question), np.int64)
            windows.append(Window(ids[:-1], ids[1:]))
        for nats in window_nats(self._engine.model, windows):
            self._likelihood_tokens += len(nats)
            yield Answer("", len(nats) + 1, nats)

    def _tokens(self, question: Question) -> list[int]:
        if question.is_chat:
            return self._tokenizer.encode_chat(list(question.prompt))  # pyright: ignore[reportArgumentType]
        return list(question.prompt)  # pyright: ignore[reportReturnType, reportArgumentType]


def _common_beginnings(prompts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """What each prompt has in common with the one before it, the shortest first and each length once."""
    found = {}
    for one, other in zip(prompts, prompts[1:], strict=False):
        size = min(len(one), len(other))
        parts = np.flatnonzero(np.asarray(one[:size]) != np.asarray(other[:size]))
        common = int(parts[0]) if len(parts) else size
        found[common] = one[:common]
    return [found[common] for common in sorted(found)]


def _whole(completion: Completion) -> Completion:
    if completion.error is not None:
        raise UserError(f"a prompt of {completion.prompt_tokens} tokens could not be answered: {completion.error}.")
    return completion
