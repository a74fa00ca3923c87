"""Our side of ``leyden bench eval``: the harness's requests answered by the engine."""

import time
from collections.abc import Sequence
from typing import Any, cast

import torch

from leyden.bench.evaluate.plan import Pair
from leyden.bench.evaluate.requests import generations, likelihoods
from leyden.evaluate.harness.model import LeydenLM
from leyden.evaluate.opening import open_model
from leyden.evaluate.task import Options
from leyden.evaluate.tasks.niah import Niah


class EvalOurs:
    """A stored model, as ``leyden eval`` opens it.

    Args:
        directory: of the model and its tokenizer.
    """

    def __init__(self, directory: str) -> None:
        source, self._subject = open_model(directory, torch.device("cpu"), ())
        self._model = LeydenLM(source, self._subject)

    def needles(self, length: int, depths: int, seed: int = 0) -> tuple[list[str], int]:
        """The prompts of the task ``niah`` as texts, one for each depth, and the tokens of each answer."""
        tokenizer = self._subject.tokenizer
        items = Niah(Options(lengths=(length,), depths=depths, seed=seed), self._subject).items()
        questions = [item.build() for item in items]
        prompts = [cast(Sequence[int], question.prompt)[1:] for question in questions]  # the harness adds the first
        return [tokenizer.decode(prompt) for prompt in prompts], questions[0].max_tokens

    def likelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """(log-probability, greedy) of each continuation."""
        return self._model.loglikelihood(likelihoods(pairs))

    def generations(self, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """The greedy continuation of each prompt."""
        return self._model.generate_until(generations(prompts, max_tokens))

    def seconds(self, work: str, *given: Any) -> float:
        """How long ``likelihoods`` or ``generations`` of these arguments take, tokenizing included."""
        started = time.perf_counter()
        getattr(self, work)(*given)
        return time.perf_counter() - started
