"""A layer of latent attention is that of stock transformers' ``deepseek_v3``, with the same weights."""

from typing import Any

import pytest
import torch
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from leyden.model import Cache, ModelConfig, RopeScaling
from leyden.model.forward_context import lay_out
from leyden.model.mixers.latent import LatentAttention

SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "mscale": 0.7, "mscale_all_dim": 1}


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, YARN], ids=["plain", "YaRN"])
@pytest.mark.parametrize("rank", [None, 14])
@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layer_of_transformers(
    rope: dict[str, Any], rank: int | None, interleave: bool, dtype: torch.dtype
) -> None:
    config = ModelConfig(
        **SHAPE,
        num_hidden_layers=1,
        layer_types=("latent_attention",),
        q_lora_rank=rank,
        rope_interleave=interleave,
        rope_scaling=RopeScaling(**rope),
    )
    said = {**SHAPE, "q_lora_rank": rank, "rope_interleave": interleave, "num_hidden_layers": 1}
    theirs_config = DeepseekV3Config(**said, rope_parameters={**rope, "rope_theta": config.rope_theta})
    theirs_config._attn_implementation = "sdpa"  # its own softmax is in float32
    generator, ours = torch.Generator().manual_seed(0), LatentAttention.create(config, 0)
    theirs: Any = DeepseekV3Attention(theirs_config, 0)
    if dtype == torch.float64:  # its own norms round to float32
        theirs.kv_a_layernorm = torch.nn.RMSNorm(SHAPE["kv_lora_rank"], eps=1e-6)
        theirs.q_a_layernorm = None if rank is None else torch.nn.RMSNorm(rank, eps=1e-6)
    with torch.no_grad():
        for parameter in ours.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * values if parameter.ndim == 1 else 0.3 * values)
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = ours.to(dtype).eval(), theirs.to(dtype).eval()

    bound = 1e-12 if dtype == torch.float64 else 2e-5
    x = torch.randn(2, 37, 48, generator=generator, dtype=dtype)
    context = lay_out(config, 37, 0, None, torch.device("cpu"))
    turns = [torch.cat([x, x], dim=-1)[None].to(dtype) * context.scale for x in (context.cos, context.sin)]
    mask = torch.full((37, 37), -torch.inf, dtype=dtype).triu(1)[None, None]
    with torch.no_grad():
        expected, _ = theirs(x, (turns[0], turns[1]), mask)
        found, _ = ours(x, context, None, None)
        assert theirs.scaling == pytest.approx(20**-0.5 * context.score_factor)
        torch.testing.assert_close(found, expected, rtol=0, atol=bound)
        memory = Cache(config, 2).layers[0]
        steps = [ours(x[:, t : t + 1], lay_out(config, 1, t, None, x.device), memory, None)[0] for t in range(37)]
        torch.testing.assert_close(torch.cat(steps, dim=1), found, rtol=0, atol=bound)
