"""The twin of what ranks compute: the same model, the same micro-batch, one process, float64."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from leyden.model import HybridLM, ModelConfig
from leyden.ops import IGNORE_INDEX
from leyden.parallel import Mesh
from leyden.parallel.part import Part
from leyden.parallel.ranks import StageRanks
from leyden.parallel.weights import cut_weights, kind_of

_SMALL = {
    "vocab_size": 101,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "layer_types": ("linear_attention", "full_attention", "linear_attention"),
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "rotary_dim": 4,
    "intermediate_size": 16,
    "num_local_experts": 4,
    "router_z_loss_coef": 0.01,
    "z_loss_coef": 0.001,
}

FOUR_LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "layer_types": ("linear_attention", "full_attention", "linear_attention", "full_attention"),
    "num_local_experts": 8,
}
"""Changes of the small model that let every axis have four ranks, and any two of them two each."""

TWO_LAYERS: dict[str, Any] = {"num_hidden_layers": 2, "layer_types": ("linear_attention", "full_attention")}
"""Further changes: half of the layers, which is as many as most plans need."""

WINDOWED: dict[str, Any] = {
    "layer_types": ("linear_attention", "sliding_attention", "full_attention", "sliding_attention"),
    "sliding_window": 6,
}
"""Further changes: two of the four layers have a window."""

COSFORMER2: dict[str, Any] = {
    "layer_types": ("cosformer2_attention", "full_attention", "linear_attention", "cosformer2_attention")
}
"""Further changes: two of the four layers are cosFormer2."""

HGRN2: dict[str, Any] = {"layer_types": ("hgrn2_attention", "full_attention", "hgrn2_attention", "linear_attention")}
"""Further changes: two of the four layers are HGRN2."""

LATENT: dict[str, Any] = {
    "layer_types": ("latent_attention", "linear_attention", "latent_attention", "full_attention"),
    "rotary_dim": 6,
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 7,
    "qk_rope_head_dim": 6,
    "v_head_dim": 5,
    "rope_interleave": True,
}
"""Further changes: two of the four layers are latent attention."""
RING: dict[str, Any] = {
    "lightning_activation": "none",
    "lightning_scale": "1/sqrt(d)",
    "lightning_rotary_dim": 4,
    "lightning_norm_groups": 4,
    "qk_norm": ("linear_attention", "full_attention"),
    "attn_output_gate": True,
    "embedding_multiplier": 3.0,
    "logits_scaling": 6.0,
}
"""Further changes: the options of the lightning family."""
CAPPED: dict[str, Any] = {
    **WINDOWED,
    "attn_logit_softcapping": 0.8,
    "final_logit_softcapping": 1.5,
}
"""Further changes: the scores of softmax heads and the logits are capped."""
SIGMOID: dict[str, Any] = {
    "router": "sigmoid_groups",
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 2.5,
    "router_group_loss_coef": 0.4,
    "shared_intermediate_size": 12,
    "shared_expert_gate": False,
}
"""Further changes: experts are chosen by sigmoids and a bias, in groups, and a shared one is added."""

YARN: dict[str, Any] = {
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0}
}
"""Further changes: RoPE is stretched, on a part of each head."""

FIRST_DENSE: dict[str, Any] = {"mlp_types": ("dense", "experts", "dense", "experts"), "dense_intermediate_size": 12}
"""Further changes: two of the four layers have a dense feed-forward with a width of its own."""

_BAILING: dict[str, Any] = {
    **SIGMOID,
    "postnorm": False,
    "mlp_types": ("dense", "experts", "experts", "experts"),
    "dense_intermediate_size": 20,
    "lightning_activation": "none",
    "lightning_scale": "1/sqrt(d)",
    "lightning_rotary_dim": 4,
    "lightning_norm_groups": 4,
    "router_group_loss_coef": 0.0,
}
LING: dict[str, Any] = {
    **_BAILING,
    **LATENT,
    "layer_types": ("linear_attention", "latent_attention", "linear_attention", "latent_attention"),
    "qk_norm": ("linear_attention",),
}
"""Further changes: a whole model as Ling-2.6, whose layers come in groups of two."""
RING_LINEAR: dict[str, Any] = {**_BAILING, "qk_norm": ("linear_attention", "full_attention")}
"""Further changes: a whole model as Ring-linear-2.0."""
SALA: dict[str, Any] = {
    "num_local_experts": 0,
    "postnorm": False,
    "layer_types": ("full_attention", "linear_attention", "linear_attention", "full_attention"),
    "full_attn_beta_factor": 0.7,
    "linear_attn_beta_factor": 0.7,
    "mlp_beta_factor": 0.7,
    "rotary_dim": 0,
    "lightning_slope_factor": "none",
    "lightning_activation": "none",
    "lightning_scale": "1/sqrt(d)",
    "lightning_rotary_dim": 8,
    "qk_norm": ("linear_attention",),
    "attn_output_gate": True,
    "embedding_multiplier": 12.0,
    "logits_scaling": 4.0,
}
"""Further changes: a whole model as MiniCPM-SALA."""


def small_config(**changes: Any) -> ModelConfig:
    """The small hybrid's shape."""
    return ModelConfig.parse({**_SMALL, **changes}, "test model")


def small_model(dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> HybridLM:
    """A small hybrid in training mode whose weights are large enough that a wrong line shows."""
    model = HybridLM(small_config(**changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + 0.3 * values if parameter.ndim == 1 else 0.25 * values)
    return model.to(dtype).train()


@dataclass(frozen=True)
class Row:
    """A packed row of random documents, as :class:`leyden.train.Pretrain` reads it."""

    tokens: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor


def random_row(lengths: list[int], vocab_size: int = 101, seed: int = 0) -> Row:
    """Documents of these lengths; one label in five is ignored."""
    generator, total = torch.Generator().manual_seed(seed), sum(lengths)
    tokens, labels = torch.randint(vocab_size, (2, 1, total), generator=generator)
    labels = labels.masked_fill(torch.rand(1, total, generator=generator) < 0.2, IGNORE_INDEX)
    return Row(tokens, labels, torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32))


def part_of_model(whole: HybridLM, mesh: Mesh) -> tuple[HybridLM, dict[str, Part]]:
    """A copy of ``whole`` cut to this rank's weights, its ranks in place, and the parts; nothing is installed yet."""
    model = copy.deepcopy(whole)
    parts = cut_weights(model, mesh)
    model.ranks = StageRanks(mesh)
    return model, parts


def summed_gradients(model: nn.Module, mesh: Mesh) -> dict[str, torch.Tensor]:
    """This rank's gradients of a model without FSDP, completed over the ranks that hold the same part of a weight."""
    over = {"tensor": ("dense",), "head_norm": ("dense",), "experts": ("fsdp_experts", "copies_experts")}
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for group in over.get(kind_of(name), ("stage",)):
            if mesh.groups.get(group) is not None:
                torch.distributed.all_reduce(gradient, group=mesh.groups[group])
        gradients[name] = gradient
    return gradients


def assert_gradients(
    gradients: dict[str, torch.Tensor], parts: dict[str, Part], whole: nn.Module, tolerance: float = 1e-10
) -> None:
    """Each rank's gradients are its parts of those of ``whole``, within ``tolerance`` of the largest one's size."""
    expected = dict(whole.named_parameters())
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        reference = expected[name].grad
        assert reference is not None, f"{name} has no gradient in one process"
        assert_close(gradient, parts[name].cut(reference), f"the gradient of {name}", tolerance)


def assert_close(found: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 1e-10) -> None:
    """Within ``tolerance`` of the largest element of ``expected``, or of 1 where that is larger."""
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)}, expected {tuple(expected.shape)}"
    error = (found - expected).abs().max().item() if found.numel() else 0.0
    size = max(1.0, expected.abs().max().item()) if found.numel() else 1.0
    assert error <= tolerance * size, f"{what} is off by {error:.3g} where values are of size {size:.3g}"
