"""Our side of the benchmark, as users of the library run it."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from leyden.bench.memory import peak_bytes, reset_peak, resident_bytes
from leyden.bench.work import DTYPES, AttentionShape, attention_inputs, random_tokens
from leyden.checkpoint import load
from leyden.core import device
from leyden.model import HybridLM
from leyden.ops import IGNORE_INDEX, lightning_attention, lightning_slopes
from leyden.serve import Engine, Sampling
from leyden.train import MasterAdamW, Pretrain, TrainState, train_step


class CpuOurs:
    """The work of the benchmark, done by Leyden.

    Args:
        directory: a checkpoint in any layout.
    """

    def __init__(self, directory: str) -> None:
        device.keep_freed_memory()
        self._directory = directory
        self._held: str | None = None
        self._model: HybridLM | None = None
        self._state: TrainState | None = None

    def matmul_flops_per_second(self, dtype: str) -> float:
        """The peak that utilisation is stated against."""
        return device.matmul_flops_per_second(DTYPES[dtype])

    def logits(self, tokens: list[int]) -> np.ndarray:
        """[T, V] float32."""
        with torch.inference_mode():
            return self._load("float32")(torch.tensor([tokens]))[0].numpy()

    def train(self, batch: int, length: int, dtype: str = "bfloat16") -> float:
        """Seconds of one step on packed rows: forward with the auxiliary loss, backward, clipping, fused AdamW.

        The model computes in ``dtype`` and the optimizer holds float32 masters and moments.
        """
        model = self._load(dtype)
        if self._state is None:
            self._state = TrainState(model, MasterAdamW(model))
        rows = _packed(random_tokens(batch, length, model.config.vocab_size))
        started = time.perf_counter()
        train_step(self._state, [rows], Pretrain(), lr=1e-5, clip_norm=1.0)
        return time.perf_counter() - started

    def train_bytes(self, batch: int, length: int, steps: int, dtype: str = "bfloat16") -> int:
        """Peak resident memory of training above the level before the model was loaded; in a fresh process."""
        before = resident_bytes()
        reset_peak()
        for _ in range(steps):
            self.train(batch, length, dtype)
        return peak_bytes() - before

    def prefill(self, dtype: str, length: int) -> float:
        """Seconds until the last position's logits, with a cache made on the way."""
        model = self._load(dtype)
        tokens = random_tokens(1, length, model.config.vocab_size)[0].tolist()
        return Engine(model).generate([tokens], Sampling(max_tokens=1, temperature=0.0))[0].prefill_seconds

    def decode(self, dtype: str, prompt_tokens: int, new_tokens: int) -> float:
        """Seconds of ``new_tokens`` greedy tokens after the first, which ends the prefill."""
        model = self._load(dtype)
        tokens = random_tokens(1, prompt_tokens, model.config.vocab_size)[0].tolist()
        sampling = Sampling(max_tokens=new_tokens + 1, temperature=0.0, ignore_eos=True)
        completion = Engine(model).generate([tokens], sampling)[0]
        if len(completion.tokens) != new_tokens + 1:
            raise RuntimeError(f"{new_tokens + 1} tokens were asked for and {len(completion.tokens)} came")
        return completion.decode_seconds

    def attention(self, shape: AttentionShape, dtype: str = "bfloat16") -> float:
        """Seconds of the lightning op, forward and backward."""
        q, k, v, grad = attention_inputs(shape, dtype)
        for x in (q, k, v):
            x.requires_grad_()
        slopes = lightning_slopes(shape.heads, 0, 8)
        started = time.perf_counter()
        lightning_attention(q, k, v, slopes)[0].backward(grad)
        return time.perf_counter() - started

    def _load(self, dtype: str) -> HybridLM:
        """The model in ``dtype``, in evaluation mode; the one held before is let go."""
        if self._model is None or self._held != dtype:
            self._model = self._state = None
            self._model = load(self._directory, dtype=DTYPES[dtype])[0]
            self._held = dtype
        return self._model.eval()


@dataclass(frozen=True)
class _Rows:
    """Sequences packed end to end, as :class:`leyden.train.PackedBatch` asks."""

    tokens: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor


def _packed(tokens: torch.Tensor) -> _Rows:
    """[B, T] as one row of B documents; the last token of each predicts nothing."""
    B, T = tokens.shape
    labels = tokens.roll(-1, dims=1)
    labels[:, -1] = IGNORE_INDEX
    return _Rows(tokens.view(1, -1), labels.view(1, -1), torch.arange(0, B * T + 1, T, dtype=torch.int32))
