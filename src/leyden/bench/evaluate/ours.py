"""Our side of ``leyden bench eval``: the harness's requests answered by the engine."""

import time
from collections.abc import Sequence

import torch

from leyden.bench.evaluate.plan import Pair, instances
from leyden.evaluate.harness.model import LeydenLM
from leyden.evaluate.opening import open_model


class EvalOurs:
    """A stored model, as ``leyden eval`` opens it.

    Args:
        directory: of the model and its tokenizer.
    """

    def __init__(self, directory: str) -> None:
        self._model = LeydenLM(*open_model(directory, torch.device("cpu"), ()))

    def answers(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """(log-probability, greedy) of each continuation."""
        return self._model.loglikelihood(instances(pairs))

    def seconds(self, pairs: Sequence[Pair]) -> float:
        """How long all of them take, tokenizing included."""
        started = time.perf_counter()
        self.answers(pairs)
        return time.perf_counter() - started
