"""A small model with a score head, as reward models and process reward models are."""

from leyden.model import HybridLM, ModelConfig

SMALL = {
    "vocab_size": 300,
    "num_hidden_layers": 2,
    "layer_types": ("linear_attention", "full_attention"),
    "hidden_size": 32,
    "intermediate_size": 32,
    "head_dim": 16,
    "rotary_dim": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 2,
    "max_position_embeddings": 256,
}


def scored_model() -> HybridLM:
    """With initial weights."""
    return HybridLM(ModelConfig.model_validate({**SMALL, "score_head": True}), seed=3).eval()
