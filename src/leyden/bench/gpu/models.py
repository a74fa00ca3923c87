"""The rows of ``leyden bench gpu`` that need a model, and so pydantic: training steps, their utilisation, prefill."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from leyden.bench.gpu.clock import Call
from leyden.bench.gpu.kernels import GpuBench, GpuRow
from leyden.bench.gpu.result import OpRow
from leyden.model import Cache, HybridLM, ModelConfig, count_model, prefill_flops, preset
from leyden.ops import IGNORE_INDEX
from leyden.train import MasterAdamW, Pretrain, sums_of_row

_SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "intermediate_size": 32,
}
_FLAT = "1B lightning training step"


@dataclass(frozen=True)
class PackedRows:
    """Documents of equal length packed end to end, as :class:`leyden.train.PackedBatch` asks."""

    tokens: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor

    @classmethod
    def of(cls, num_tokens: int, length: int, vocab_size: int, device: torch.device) -> "PackedRows":
        """``num_tokens`` in documents of ``length``; the last token of each predicts nothing."""
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(vocab_size, (1, num_tokens), generator=generator)
        labels = tokens.roll(-1, dims=1)
        labels[:, length - 1 :: length] = IGNORE_INDEX
        bounds = torch.arange(0, num_tokens + 1, length, dtype=torch.int32)
        return cls(tokens.to(device), labels.to(device), bounds)


def model_jobs(*, quick: bool) -> list[GpuRow]:
    """Training tokens a second by length for three kinds of model, utilisation, prefill."""
    small = _SMALL if quick else {}
    mixed = {"layer_types": ("linear_attention", "full_attention")} if quick else {}
    dense = functools.partial(preset, "1b", **small)
    layers = dense(**mixed).num_hidden_layers
    kinds = {
        "hybrid": dense(**mixed),
        "lightning": dense(layer_types=("linear_attention",) * layers),
        "softmax": dense(layer_types=("full_attention",) * layers),
    }
    tokens, lengths = (64, (16, 64)) if quick else (131_072, (2048, 8192, 32_768, 131_072))
    jobs = [_step_job(f"1B {kind} training step, T{t}", kinds[kind], tokens, t) for kind in kinds for t in lengths]
    moe = preset("410m", num_local_experts=8, num_experts_per_tok=2, **small, **mixed)
    row, length, micro_batches = (32, 16, 2) if quick else (16_384, 8192, 4)
    kinds_and_goals = (
        ("160M hybrid", preset("160m", **small, **mixed), None),
        ("1B hybrid", kinds["hybrid"], 0.45),
        ("MoE of 8 experts, top-2", moe, 0.35),
    )
    for name, config, goal in kinds_and_goals:
        jobs.append(_utilisation_job(f"utilisation, {name}, T{length}", config, row, length, micro_batches, goal))
    stack = preset("7b", **{"num_hidden_layers": 8, "vocab_size": 8192, **small, **mixed})
    for length in (32, 64) if quick else (32_768, 262_144):
        jobs.append(_prefill_job(f"prefill of {stack.num_hidden_layers} hybrid layers, T{length}", stack, length))
    return jobs


def flatness(rows: list[OpRow]) -> list[OpRow]:
    """How even the pure lightning model's tokens a second are over all lengths; nothing from fewer than two."""
    values = [row.value for row in rows if row.work.startswith(_FLAT) and row.value is not None]
    if len(values) < 2:
        return []
    return [OpRow(f"{_FLAT}, slowest of all lengths", value=min(values) / max(values), unit="of the fastest", goal=0.9)]


def _step_job(work: str, config: ModelConfig, num_tokens: int, length: int) -> GpuRow:
    def measure(bench: GpuBench) -> OpRow:
        trainer = _trainer(config, bench.device, recompute=True)
        batch = PackedRows.of(num_tokens, length, config.vocab_size, bench.device)
        seconds = _timed(bench, lambda: trainer.step([batch]))
        floor = num_tokens * count_model(config).training_flops_per_token(length) / bench.speed.flops_per_second
        return OpRow(
            "", seconds, floor, "FLOPs", value=num_tokens / seconds, unit="tokens/s",
            note=f"{num_tokens} tokens a step; layers recomputed in the backward, which the floor does not count",
        )  # fmt: skip

    return GpuRow(work, measure)


def _utilisation_job(
    work: str, config: ModelConfig, num_tokens: int, length: int, micro_batches: int, goal: float | None
) -> GpuRow:
    def measure(bench: GpuBench) -> OpRow:
        trainer = _trainer(config, bench.device, recompute=False)
        batch = PackedRows.of(num_tokens, length, config.vocab_size, bench.device)
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
        seconds = _timed(bench, lambda: trainer.step([batch] * micro_batches))
        memory = torch.cuda.max_memory_allocated(bench.device) if bench.device.type == "cuda" else 0
        flops = micro_batches * num_tokens * count_model(config).training_flops_per_token(length)
        floor = flops / bench.speed.flops_per_second
        return OpRow(
            "", seconds, floor, "FLOPs", value=floor / seconds, unit="of the matrix rate", goal=goal,
            note=f"{count_model(config).parameters / 1e9:.2f} B weights, {micro_batches} x {num_tokens} tokens a step; "
            f"{micro_batches * num_tokens / seconds:,.0f} tokens/s, {memory / 2**30:.1f} GiB at most; model FLOPs over "
            "the measured matrix rate",
        )  # fmt: skip

    return GpuRow(work, measure)


def _prefill_job(work: str, config: ModelConfig, length: int) -> GpuRow:
    def measure(bench: GpuBench) -> OpRow:
        model = reader(config, bench.device)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(config.vocab_size, (1, length), generator=generator).to(bench.device)

        def read() -> torch.Tensor:
            with torch.inference_mode():
                features = model.features(tokens, cache=Cache(config, batch_size=1), last=1)
                return model.logits(features.hidden)

        seconds = _timed(bench, read)
        floor = prefill_flops(config, length) / bench.speed.flops_per_second
        return OpRow("", seconds, floor, "FLOPs", value=floor / seconds, unit="of the matrix rate", goal=0.6)

    return GpuRow(work, measure)


class _Trainer:
    """A model with its optimizer.

    Args:
        model: in bfloat16; the optimizer holds float32 masters.
        recompute: layers keep their inputs alone, so that long rows fit.
    """

    def __init__(self, model: HybridLM, *, recompute: bool) -> None:
        self._model, self._optimizer, self._objective = model.train(), MasterAdamW(model), Pretrain()
        if recompute:
            for layer in model.layers:
                layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)

    def step(self, batches: list[PackedRows]) -> None:
        """One optimizer step; nothing is read back from the device."""
        labels = torch.zeros((), device=batches[0].tokens.device)
        for batch in batches:
            sums = sums_of_row(self._objective, self._model, batch)
            sums.loss.backward()
            self._optimizer.accumulate()
            labels = labels + sums.weight
        norm = self._optimizer.grad_norm() / labels
        self._optimizer.step(1e-5, labels * norm.clamp_min(1.0))


class _Latest:
    """The latest model that was built, with its key: rows of one model stand together, and memory holds one."""

    def __init__(self) -> None:
        self._held: tuple[Any, Any] | None = None

    def get(self, key: Any, build: Callable[[], Any]) -> Any:
        """What ``build()`` gave for an equal key, or gives now, after the one before was let go."""
        if self._held is None or self._held[0] != key:
            self._held = None
            self._held = (key, build())
        return self._held[1]

    def forget(self) -> None:
        self._held = None


_latest = _Latest()
forget = _latest.forget
"""Let the model go."""


def _trainer(config: ModelConfig, device: torch.device, *, recompute: bool) -> _Trainer:
    return _latest.get((config, recompute), lambda: _Trainer(_model(config, device), recompute=recompute))


def reader(config: ModelConfig, device: torch.device) -> HybridLM:
    """A model in evaluation mode; the one before is let go."""
    return _latest.get((config, None), lambda: _model(config, device).eval())


def _model(config: ModelConfig, device: torch.device) -> HybridLM:
    return HybridLM(config, seed=0).to(device, torch.bfloat16)


def _timed(bench: GpuBench, call: Call) -> float:
    """Median seconds; on any error the model is let go, so that the next row has the memory."""
    try:
        return bench.clock([call])
    except BaseException:
        forget()
        raise
