"""The other side of ``leyden bench eval``: lm-eval's ``hf`` model, on transformers' MiniMax."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import transformers
from lm_eval.api.registry import get_model

from leyden.bench.evaluate.plan import Pair
from leyden.bench.evaluate.requests import generations, likelihoods


class EvalTheirs:
    """A stored model, as ``lm_eval --model hf`` opens it, in float32.

    A variant is the size of a batch and the implementation of the experts.

    Args:
        directory: of the model and its tokenizer.
        batches: sizes to choose from.
    """

    def __init__(self, directory: str, batches: Sequence[int]) -> None:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._directory, self._batches = directory, batches
        self._held: tuple[str, Any] | None = None

    def variants(self, work: str) -> list[str]:
        """What to choose the fastest from; prompts of one length each are generated from one at a time."""
        batches = self._batches if work == "likelihoods" else (1,)
        return [f"{batch} {experts}" for batch in batches for experts in ("grouped_mm", "eager")]

    def likelihoods(self, variant: str, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """(log-probability, greedy) of each continuation."""
        return self._model(variant).loglikelihood(likelihoods(pairs), disable_tqdm=True)

    def generations(self, variant: str, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """The greedy continuation of each prompt."""
        return self._model(variant).generate_until(generations(prompts, max_tokens), disable_tqdm=True)

    def seconds(self, work: str, variant: str, *given: Any) -> float:
        """How long ``likelihoods`` or ``generations`` of these arguments take, tokenizing included."""
        self._model(variant)
        started = time.perf_counter()
        getattr(self, work)(variant, *given)
        return time.perf_counter() - started

    def _model(self, variant: str) -> Any:
        if self._held is None or self._held[0] != variant:
            batch, experts = variant.split()
            self._held = None
            made: Any = get_model("hf")
            self._held = (
                variant,
                made(
                    pretrained=self._directory,
                    device="cpu",
                    dtype="float32",
                    batch_size=int(batch),
                    add_bos_token=True,
                    experts_implementation=experts,
                ),
            )
        return self._held[1]
