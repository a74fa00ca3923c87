"""The baseline of ``leyden bench serve``: transformers' ``generate`` over a batch, as its users run it."""

import time
from typing import Any

import numpy as np
import torch
import transformers
from transformers import MiniMaxForCausalLM

from leyden.bench.serve_plan import prompts
from leyden.bench.theirs import Clock
from leyden.bench.work import DTYPES


class ServeTheirs:
    """The work, done by transformers; a variant names the implementation of the experts.

    ``generate`` counts positions itself, so that the cache's wrong length (its first layer is empty where it is a
    lightning layer) does not reach its results; prompts are of one length and need no padding.

    Args:
        directory: a checkpoint that ``from_pretrained`` opens.
    """

    def __init__(self, directory: str) -> None:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._directory = directory
        self._held: tuple[Any, ...] = ()
        self._model: Any = None

    def variants(self) -> list[str]:
        """What to choose the fastest from; "batched_mm" copies two experts for every token of the prompts."""
        return ["grouped_mm", "eager"]

    def logits(self, tokens: list[int]) -> np.ndarray:
        """[T, V] float32, without a cache."""
        model = self._load("grouped_mm", "float32")
        with torch.inference_mode():
            return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()

    def generate(self, variant: str, dtype: str, streams: int, prompt: int, new: int, seed: int) -> tuple[float, float]:
        """Seconds from the call to the last token of all streams, and to the first."""
        model = self._load(variant, dtype)
        tokens, clock = torch.tensor(prompts(streams, prompt, model.config.vocab_size, seed)), Clock()
        started = time.perf_counter()
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            streamer=clock,
        )
        return clock.times[new] - started, clock.times[1] - started

    def _load(self, experts: str, dtype: str) -> Any:
        """The model; the one held before is let go."""
        if self._held != (experts, dtype):
            self._model = None
            self._model = MiniMaxForCausalLM.from_pretrained(
                self._directory, dtype=DTYPES[dtype], experts_implementation=experts
            ).eval()
            self._held = (experts, dtype)
        return self._model
