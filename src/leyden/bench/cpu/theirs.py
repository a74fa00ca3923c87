"""The baseline: the MiniMax of Hugging Face transformers, as its users run it, in the fastest variant it offers."""

import itertools
import time
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention
from transformers import MiniMaxForCausalLM
from transformers.generation.streamers import BaseStreamer

from leyden.bench.memory import peak_bytes, reset_peak, resident_bytes
from leyden.bench.work import DTYPES, AttentionShape, attention_inputs, bench_dtype, random_tokens


class TokenClock(BaseStreamer):
    """Notes when each token comes out of ``generate``; the first entry is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to print."""


class Baseline:
    """MiniMax by transformers, held in one variant at a time.

    Args:
        directory: a checkpoint that ``from_pretrained`` opens.
    """

    def __init__(self, directory: str) -> None:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._directory = directory
        self._held: tuple[Any, ...] = ()
        self._model: Any = None

    def logits(self, tokens: list[int]) -> np.ndarray:
        """[T, V] float32, without a cache."""
        model = self._load("grouped_mm", torch.float32)
        with torch.inference_mode():
            return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()

    def _load(self, experts: str, dtype: torch.dtype) -> Any:
        """The model in evaluation mode, with this implementation of the experts; the one held before is let go."""
        if self._held != (experts, dtype):
            self._let_go()
            self._model = MiniMaxForCausalLM.from_pretrained(
                self._directory, dtype=dtype, experts_implementation=experts
            )
            self._held = (experts, dtype)
        return self._model.eval()

    def _let_go(self) -> None:
        self._model = None


class CpuTheirs(Baseline):
    """The work of the benchmark, done by transformers.

    A variant names the implementation of the experts and, for training, the precision: ``autocast`` (float32 weights
    under ``torch.autocast``), ``bfloat16`` (weights, gradients and AdamW's moments all in bfloat16) or ``float32``.

    Args:
        directory: a checkpoint that ``from_pretrained`` opens.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self._optimizer: torch.optim.AdamW | None = None

    def variants(self, work: str) -> list[str]:
        """What to choose the fastest from, for ``"train"``, ``"prefill"`` or ``"decode"``."""
        if work == "train":
            precisions = ("float32",) if bench_dtype() == "float32" else ("autocast", "bfloat16")
            return [" ".join(pair) for pair in itertools.product(precisions, ("grouped_mm", "eager"))]
        return ["grouped_mm", "eager"] if work == "prefill" else ["grouped_mm", "eager", "batched_mm"]

    def version(self) -> str:
        return transformers.__version__

    def train(self, variant: str, batch: int, length: int) -> float:
        """Seconds of one step: forward with the auxiliary loss, backward, clipping, fused AdamW."""
        precision, experts = variant.split()
        autocast = precision == "autocast"
        model = self._load(experts, torch.float32 if autocast else DTYPES[precision]).train()
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(
                model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True
            )
        tokens = random_tokens(batch, length, model.config.vocab_size)
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(tokens, labels=tokens, output_router_logits=True, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return time.perf_counter() - started

    def train_bytes(self, variant: str, batch: int, length: int, steps: int) -> int:
        """Peak resident memory of training above the level before the model was loaded; in a fresh process."""
        before = resident_bytes()
        reset_peak()
        for _ in range(steps):
            self.train(variant, batch, length)
        return peak_bytes() - before

    def prefill(self, variant: str, dtype: str, length: int) -> float:
        """Seconds until the last position's logits, with a cache made on the way."""
        model = self._load(variant, DTYPES[dtype])
        tokens = random_tokens(1, length, model.config.vocab_size)
        started = time.perf_counter()
        with torch.inference_mode():
            model(tokens, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - started

    def decode(self, variant: str, dtype: str, prompt_tokens: int, new_tokens: int) -> float:
        """Seconds of ``new_tokens`` greedy tokens by ``generate``, after the first, which ends the prefill."""
        model = self._load(variant, DTYPES[dtype])
        tokens, clock = random_tokens(1, prompt_tokens, model.config.vocab_size), TokenClock()
        model.generate(
            tokens,
            max_new_tokens=new_tokens + 1,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            streamer=clock,
        )
        return clock.times[new_tokens + 1] - clock.times[1]

    def attention(self, shape: AttentionShape, dtype: str = "bfloat16") -> float:
        """Seconds of causal ``scaled_dot_product_attention``, forward and backward."""
        q, k, v, grad = (x.transpose(1, 2).contiguous() for x in attention_inputs(shape, dtype))
        for x in (q, k, v):
            x.requires_grad_()
        started = time.perf_counter()
        scaled_dot_product_attention(q, k, v, is_causal=True).backward(grad)
        return time.perf_counter() - started

    def _let_go(self) -> None:
        super()._let_go()
        self._optimizer = None
