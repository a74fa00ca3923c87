"""Answers of a model in this process."""

from collections.abc import Iterator, Sequence

import numpy as np

from leyden.core.errors import UserError
from leyden.evaluate.likelihood import Window, window_nats
from leyden.evaluate.prompt_scores import prompt_scores
from leyden.evaluate.prompt_tree import prompt_tree
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
        self._likelihood_tokens = self._likelihood_reads = 0

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """See :class:`leyden.evaluate.sources.source.Source`.

        What several prompts begin with is read first and by itself, so that all of them go on from there.
        """
        generating = [index for index, question in enumerate(questions) if question.max_tokens]
        whole = [index for index, question in enumerate(questions) if not question.max_tokens and _is_whole(question)]
        ends = [
            index for index, question in enumerate(questions) if not question.max_tokens and not _is_whole(question)
        ]
        if generating:
            yield from zip(generating, self._generated([questions[index] for index in generating]), strict=True)
        if ends:
            for place, answer in self._scored([questions[index] for index in ends]):
                yield ends[place], answer
        if whole:
            yield from zip(whole, self._likelihoods([questions[index] for index in whole]), strict=True)

    @property
    def reading(self) -> ReadProgress:
        """By the engine's own statistics."""
        statistics = self._engine.statistics
        return ReadProgress(
            statistics.prompt_tokens + self._likelihood_tokens, statistics.prefill_tokens + self._likelihood_reads
        )

    def _generated(self, questions: Sequence[Question]) -> Iterator[Answer]:
        prompts = [self._tokens(question) for question in questions]
        samplings = [_sampling(question) for question in questions]
        for prompt, sampling in zip(prompts, samplings, strict=True):
            self._engine.check(prompt, sampling)
        for beginning in _common_beginnings(prompts):
            self._engine.read_ahead(beginning)
            self._engine.rest()
        for completion in self._engine.generate(prompts, samplings):
            yield Answer(_whole(completion).text, completion.prompt_tokens)

    def _scored(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """Likelihoods of the ends of prompts, with the most probable token in each place; shared beginnings once."""
        prompts = [self._tokens(question) for question in questions]
        for prompt in prompts:
            self._check_length(prompt)
        tree = prompt_tree([prompt[:-1] for prompt in prompts])
        scored = [
            len(prompt) - 1 if question.scored is None else question.scored
            for question, prompt in zip(questions, prompts, strict=True)
        ]
        self._likelihood_reads += tree.num_tokens
        for index, score in prompt_scores(self._engine.model, prompts, scored, tree=tree):
            self._likelihood_tokens += len(prompts[index]) - 1
            yield index, Answer("", len(prompts[index]), score.nats, score.greedy)

    def _likelihoods(self, questions: Sequence[Question]) -> Iterator[Answer]:
        windows = []
        for question in questions:
            ids = np.asarray(self._tokens(question), np.int64)
            self._check_length(ids)
            windows.append(Window(ids[:-1], ids[1:]))
        for nats in window_nats(self._engine.model, windows):
            self._likelihood_tokens += len(nats)
            self._likelihood_reads += len(nats)
            yield Answer("", len(nats) + 1, nats)

    def _check_length(self, prompt: Sequence[int] | np.ndarray) -> None:
        positions = self._engine.model.config.max_position_embeddings
        if len(prompt) - 1 > positions:  # the last token is foretold, and not read
            raise UserError(
                f"a prompt of {len(prompt)} tokens is longer than the {positions} positions of this model "
                "(max_position_embeddings); give shorter --lengths or texts."
            )

    def _tokens(self, question: Question) -> list[int]:
        if question.is_chat:
            return self._tokenizer.encode_chat(list(question.prompt))  # pyright: ignore[reportArgumentType]
        return list(question.prompt)  # pyright: ignore[reportReturnType, reportArgumentType]


def _is_whole(question: Question) -> bool:
    """Whether a question about likelihoods is about all of its prompt, and about nothing else."""
    return question.scored is None and not question.greedy


def _sampling(question: Question) -> Sampling:
    return Sampling(max_tokens=question.max_tokens, temperature=0.0, stop=question.stop)


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
