"""A small random model with a tokenizer that was trained on a few sentences."""

from collections.abc import Callable

import pytest
import torch

from leyden.model import HybridLM, ModelConfig
from leyden.tokenizer import Tokenizer

_SENTENCES = ("The lightning struck the old tower.", "A jar keeps the lightning.", "Grüße aus Leyden: ☂ ☂ 雷電")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(_SENTENCES * 4, vocab_size=290)


@pytest.fixture(scope="session")
def make_model(tokenizer: Tokenizer) -> Callable[..., HybridLM]:
    """Three lightning layers around a softmax layer, with experts; weights large enough that logits differ."""

    def make(**changes: object) -> HybridLM:
        shape = {
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "layer_types": ("linear_attention", "full_attention", "linear_attention", "linear_attention"),
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rotary_dim": 8,
            "intermediate_size": 32,
            "num_local_experts": 4,
        }
        model = HybridLM(ModelConfig.parse({**shape, **changes}, "test model"), seed=1).eval()
        with torch.no_grad():
            model.lm_head.weight.mul_(3)
        return model

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., HybridLM]) -> HybridLM:
    return make_model()
