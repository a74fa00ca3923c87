"""Rounds of completions of a small model with initial weights, and an environment for them."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from leyden.align.rollouts.batches import RolloutBatches, RoundShape
from leyden.align.rollouts.critic import Critic
from leyden.align.rollouts.prompts import Prompts
from leyden.align.rollouts.settings import RolloutSettings
from leyden.data import Batch
from leyden.model import HybridLM, preset
from leyden.tokenizer import Tokenizer
from leyden.train import MasterAdamW, TrainState
from leyden.train.metrics import StepLog

SIZES = {"max_sequences": 16, "kv_gigabytes": 0.02, "cache_gigabytes": 0.001, "swap_gigabytes": 0.001}


class Letters:
    """The share of letters in a response; some rewards are missing, and one group is all alike."""

    def prompts(self) -> Iterable[Mapping[str, Any]]:
        return [{"prompt": f"Is {number} so?", "number": number} for number in range(5)]

    def score(self, row: Mapping[str, Any], response: str) -> float | None:
        if row["number"] == 3:
            return 0.5
        if response[:1] in ("a", "e", "o"):
            return math.nan
        return sum(letter.isalpha() for letter in response) / 16


def settings(**changes: Any) -> RolloutSettings:
    return RolloutSettings.parse(
        {
            "environment": "tests:Letters",
            "group_size": 4,
            "prompts_per_step": 4,
            "max_tokens": 12,
            "engine": SIZES,
            **changes,
        },
        "test",
    )


def state_of(tokenizer: Tokenizer, dtype: torch.dtype = torch.float32, **changes: Any) -> TrainState:
    shape = preset(
        "tiny",
        vocab_size=tokenizer.vocab_size,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        hidden_size=32,
        intermediate_size=32,
        head_dim=16,
        rotary_dim=8,
        max_position_embeddings=512,
        **changes,
    )
    model = HybridLM(shape, seed=1).to(dtype)
    return TrainState(model, MasterAdamW(model))


def batches_of(
    state: TrainState,
    tokenizer: Tokenizer,
    log: Path,
    how: RolloutSettings,
    environment: Any = None,
    reference: HybridLM | None = None,
    critic: Critic | None = None,
) -> RolloutBatches:
    environment = environment or Letters()
    return RolloutBatches(
        state,
        tokenizer,
        how,
        Prompts(environment, tokenizer, longest=70, seed=3),
        environment,
        RoundShape(seq_len=96, micro_batch_tokens=384, seed=3),
        log=StepLog(log, last=state.step),
        stage="rl",
        reference=reference,
        critic=critic,
    )


def same(one: Batch, other: Batch) -> bool:
    tensors = [
        {"tokens": b.tokens, "labels": b.labels, "bounds": b.cu_seqlens, **b.per_token, **b.per_document}
        for b in (one, other)
    ]
    return tensors[0].keys() == tensors[1].keys() and all(torch.equal(x, tensors[1][k]) for k, x in tensors[0].items())
