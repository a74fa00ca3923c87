"""A tokenizer of single bytes, and a small model for it."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from leyden.model import HybridLM, ModelConfig


class ByteTokenizer:
    """One token a byte, then bos and eod: what the evaluations ask of a tokenizer, and no more."""

    bos_id, eod_id, vocab_size = 256, 257, 258

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) for text in texts]


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture(scope="session")
def model() -> HybridLM:
    config = ModelConfig(
        vocab_size=258,
        hidden_size=32,
        num_hidden_layers=3,
        layer_types=("linear_attention", "full_attention", "linear_attention"),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        rotary_dim=8,
        intermediate_size=24,
        num_local_experts=3,
        num_experts_per_tok=2,
        capacity_factor=0.5,
        max_position_embeddings=400,
    )
    model = HybridLM(config, seed=1)
    with torch.no_grad():  # far from uniform, so that a wrong label or a leak between documents shows
        model.lm_head.weight.mul_(6)
    return model.eval()
