"""Tasks of ``leyden eval`` on a model that is being trained, which changes nothing of the training."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from leyden.core.errors import UserError
from leyden.evaluate import evaluate
from leyden.evaluate.haystack import Haystack
from leyden.evaluate.sources import EngineSource, Source
from leyden.evaluate.sources.source import ReadProgress
from leyden.evaluate.task import Answer, Question, Subject
from leyden.evaluate.tasks import make_task
from leyden.parallel import RankGroup
from leyden.recipes.schema import Recipe
from leyden.recipes.sections import TaskSection
from leyden.tokenizer import Tokenizer
from leyden.train import TrainState
from leyden.train.generators import generators_kept
from leyden.train.observing import Finding, Watcher
from leyden.train.whole import whole_model

_OF_ONE_TIME = ("seconds", "reading", "model")
"""What a task's line says of the time and the process in which it was measured."""


class TaskWatcher:
    """Measures the tasks of a recipe's ``[[evaluate.task]]``, each every so many steps and at the end of a stage, or
    at the end of the last one alone.

    The weights are copied into a model of their own, whose engine answers; both are gone before the next step. Of
    several ranks, each takes part in bringing the weights together, and the first asks the questions.

    Args:
        recipe: settled.
        tokenizer: the run's.
        held_out: the texts of the documents that the run holds out.

    Raises:
        UserError: a task's options do not fit the model, or leave nothing to ask; the message names the task.
    """

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, held_out: Sequence[str]) -> None:
        self._sections, self._config, self._tokenizer = recipe.evaluate.task, recipe.model, tokenizer
        self._dtype: torch.dtype = getattr(torch, recipe.train.dtype)
        self._haystack = functools.cache(lambda text: Haystack(tokenizer, text))
        self._held_out = functools.cache(lambda: Haystack(tokenizer, texts=held_out))
        for section in self._sections:
            if section.held_out and not held_out:
                raise UserError(
                    f"[[evaluate.task]] {section.task}: held_out = true, but this run holds no documents out; name "
                    "some with text, or raise [data] held_out_fraction."
                )
            if not make_task(section.task, section.options, self._subject(section)).items():
                raise UserError(
                    f"[[evaluate.task]] {section.task}: the options leave no items; raise limit, samples or depths."
                )

    def __call__(self, state: TrainState, last: bool, /, *, goes_on: bool = False) -> Sequence[Finding]:
        """See :class:`leyden.train.observing.Watcher`.

        Args:
            state, last: as there.
            goes_on: another stage follows, at whose end tasks of ``every_steps = 0`` are measured instead.
        """
        steps = [section.every_steps for section in self._sections]
        is_due = [state.step % every == 0 or last if every else last and not goes_on for every in steps]
        due = [section for section, now in zip(self._sections, is_due, strict=True) if now]
        if not due:
            return ()
        state.rank_group.at("the weights of all ranks in one model", state.step)
        with generators_kept():
            model = whole_model(state, self._dtype)
            lines = state.rank_group.first(lambda: self._measured(EngineSource(model, self._tokenizer), due, state))
        return [Finding(line, f"{line['task']} {line['value']:.3f}") for line in lines]

    def _measured(self, source: Source, due: Sequence[TaskSection], state: TrainState) -> list[dict[str, Any]]:
        noted = _Noted(source, state.rank_group, state.step)
        found = []
        for section in due:
            (line,) = evaluate(noted, self._subject(section), [section.task], section.options)
            found.append({name: value for name, value in line.items() if name not in _OF_ONE_TIME})
        return found

    def _subject(self, section: TaskSection) -> Subject:
        haystack = self._held_out() if section.held_out else self._haystack(section.text)
        config, tokenizer = self._config, self._tokenizer
        positions, chats = config.max_position_embeddings, tokenizer.chat_template is not None
        return Subject("the model", tokenizer, positions, config.vocab_size, haystack, chats)


class AtTheEnd:
    """A watcher that is asked at the end of a stage alone.

    Args:
        watcher: that one.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def __call__(self, state: TrainState, last: bool, /) -> Sequence[Finding]:
        """See :class:`leyden.train.observing.Watcher`."""
        return self._watcher(state, last) if last else ()


class _Noted:
    """A source whose every answer is noted as progress of its rank, for which the others wait."""

    def __init__(self, source: Source, rank_group: RankGroup, step: int) -> None:
        self._source, self._rank_group, self._step = source, rank_group, step
        self.identity = source.identity

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """See :class:`leyden.evaluate.sources.source.Source`."""
        for answer in self._source.answers(questions):
            self._rank_group.at("a task of the evaluation", self._step)
            yield answer

    @property
    def reading(self) -> ReadProgress:
        """See :class:`leyden.evaluate.sources.source.Source`."""
        return self._source.reading
