"""The baseline of ``leyden bench serve``: transformers' ``generate`` over a batch, as its users run it."""

import time

import torch

from leyden.bench.cpu.theirs import Baseline, TokenClock
from leyden.bench.serve.plan import prompts
from leyden.bench.work import DTYPES


class ServeTheirs(Baseline):
    """The work, done by transformers; a variant names the implementation of the experts.

    ``generate`` counts positions itself, so that the cache's wrong length (its first layer is empty where it is a
    lightning layer) does not reach its results; prompts are of one length and need no padding.

    Args:
        directory: a checkpoint that ``from_pretrained`` opens.
    """

    def variants(self) -> list[str]:
        """What to choose the fastest from; "batched_mm" copies two experts for every token of the prompts."""
        return ["grouped_mm", "eager"]

    def generate(self, variant: str, dtype: str, streams: int, prompt: int, new: int, seed: int) -> tuple[float, float]:
        """Seconds from the call to the last token of all streams, and to the first."""
        model = self._load(variant, DTYPES[dtype])
        tokens, clock = torch.tensor(prompts(streams, prompt, model.config.vocab_size, seed)), TokenClock()
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
