"""Draft tokens in a step: read behind the last token, and kept as far as they are verified."""

from collections.abc import Sequence

import torch

from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM
from leyden.serve.config import EngineConfig
from leyden.serve.job import Generation
from leyden.serve.memory import EngineMemory
from leyden.serve.request import adapter_of
from leyden.serve.runner import Reading
from leyden.serve.sampling import Draw, SamplerBatch
from leyden.serve.speculation import Ask, DraftModel, Guesser, PromptLookup, verify
from leyden.serve.statistics import Statistics


def make_guesser(config: EngineConfig, target: HybridLM, draft: HybridLM | None, kv_bytes: int) -> Guesser | None:
    """What ``config`` asks for; None for no guesses.

    Args:
        config: of the engine.
        target: the model whose tokens are guessed.
        draft: the small model.
        kv_bytes: for its keys and values.

    Raises:
        UserError: a small model without the setting, or the other way round, or one of another vocabulary.
    """
    if (config.speculation == "draft") != (draft is not None):
        raise UserError("speculation='draft' and a draft model belong together; give both or neither.")
    if draft is None:
        return PromptLookup() if config.speculation == "prompt" else None
    sizes = {"max_sequences": config.max_sequences, "draft_tokens": config.draft_tokens, "kv_bytes": kv_bytes}
    return DraftModel(draft.eval(), target.config, **sizes)


class Drafts:
    """Guesses for a step's decodes, each with a slot for the state behind it.

    Args:
        guesser: None for none: then every reading is of one token.
        memory: of the sequences.
        draft_tokens: guessed at a time, at most.
        statistics: where guesses are counted.
    """

    def __init__(
        self, guesser: Guesser | None, memory: EngineMemory, draft_tokens: int, statistics: Statistics
    ) -> None:
        self._statistics = statistics
        self._guesser = guesser
        self._memory = memory
        self._draft_tokens = draft_tokens
        self._lent: list[int] = []
        self._drawing: tuple[Sequence[Generation], SamplerBatch] = [], SamplerBatch([])

    def readings(self, jobs: Sequence[Generation]) -> list[Reading]:
        """The last token of each sequence, and behind it what is guessed, as far as there are pages and slots."""
        if self._guesser is None:
            return [_reading(job) for job in jobs]
        guesses = self._guesser.propose([self._ask(job) for job in jobs])
        return [_reading(job, *self._lend(job, guess)) for job, guess in zip(jobs, guesses, strict=True)]

    def accept(self, jobs: Sequence[Generation], readings: Sequence[Reading], logits: torch.Tensor) -> list[list[Draw]]:
        """Draw from the logits [R, V] behind all that was read; each sequence then stands behind its right guesses.

        What drawing needs is prepared again where ``jobs`` is another object than the last time.
        """
        if self._guesser is None:
            if jobs is not self._drawing[0]:
                self._drawing = jobs, SamplerBatch([job.sampler for job in jobs])
            for job in jobs:
                job.read += 1
            return [[drawn] for drawn in self._drawing[1].draw(logits)]
        draws = verify([job.sampler for job in jobs], [reading.tokens[1:] for reading in readings], logits)
        for job, reading, drawn in zip(jobs, readings, draws, strict=True):
            assert job.holding is not None
            job.read += len(drawn)
            state = reading.states[len(drawn)]
            if state != job.holding.state:
                self._lent[self._lent.index(state)] = job.holding.state
                job.holding.state = state
            self._statistics.draft_tokens_proposed += len(reading.tokens) - 1
            self._statistics.draft_tokens_accepted += len(drawn) - 1
        self.give_back()
        return draws

    def give_back(self) -> None:
        """The slots of this step's guesses."""
        self._memory.give_back(self._lent)
        self._lent = []

    def forget(self, job: Generation) -> None:
        """It has ended."""
        if self._guesser is not None:
            self._guesser.forget(job.name)

    def _ask(self, job: Generation) -> Ask:
        return Ask(job.name, job.tokens, min(self._draft_tokens, job.left - 1), job.sampler)

    def _lend(self, job: Generation, guess: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """As much of a guess as there is room for, and the slots of the states behind it."""
        assert job.holding is not None
        last = len(job.tokens)
        if not self._memory.grow(job.holding, last + len(guess)):
            guess = guess[: len(job.holding.pages) * PAGE - last]
        spare = self._memory.states(len(guess))
        if spare is None:
            return (), ()
        self._lent += spare
        return guess, spare


def _reading(job: Generation, guess: Sequence[int] = (), spare: Sequence[int] = ()) -> Reading:
    assert job.holding is not None
    state = job.holding.state
    tokens = (*job.tokens[job.read :], *guess)
    adapter = adapter_of(job.salt)
    return Reading(tokens, job.read, job.holding.pages, (state, state, *spare), len(tokens), adapter=adapter)
