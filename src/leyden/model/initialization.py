"""Initial weights: Xavier, with DeepNorm's gain on what feeds the residual (arXiv 2501.08313, section 4.3)."""

import math

import torch
from torch import nn

from leyden.model.config import ModelConfig
from leyden.model.experts import Experts, Router, SharedExpert, SwiGLU
from leyden.model.lightning import LightningAttention
from leyden.model.softmax import SoftmaxAttention


def initialize(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every matrix of ``model`` in place; norms stay one. A model on the meta device is left as it is.

    Matrices are Xavier normal. With DeepNorm residuals the value, output and feed-forward projections are scaled by
    the gain ``beta = (8 N)^(-1/4)`` (arXiv 2203.00555, decoder-only), the query and key projections by 1.
    """
    if any(p.is_meta for p in model.parameters()):
        return
    gain = (8 * config.num_hidden_layers) ** -0.25 if config.postnorm else 1.0
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, LightningAttention):
            _lightning(module, gain, generator)
        elif isinstance(module, SoftmaxAttention):
            _xavier(module.q_proj.weight, 1.0, generator)
            _xavier(module.k_proj.weight, 1.0, generator)
            _xavier(module.v_proj.weight, gain, generator)
            _xavier(module.o_proj.weight, gain, generator)
        elif isinstance(module, Experts):
            for expert in range(module.gate_up_proj.shape[0]):
                for half in module.gate_up_proj.data[expert].chunk(2):
                    _xavier(half, gain, generator)
                _xavier(module.down_proj.data[expert], gain, generator)
        elif isinstance(module, SwiGLU):
            for projection in (module.gate_proj, module.up_proj, module.down_proj):
                _xavier(projection.weight, gain, generator)
        elif isinstance(module, Router):
            _xavier(module.weight, 1.0, generator)
        elif isinstance(module, SharedExpert):
            _xavier(module.coefficient.weight, 1.0, generator)
        elif isinstance(module, nn.Embedding) or (name == "lm_head" and isinstance(module, nn.Linear)):
            _xavier(module.weight, 1.0, generator)


def _lightning(module: LightningAttention, gain: float, generator: torch.Generator) -> None:
    """Query and key rows by 1, value rows by the gain; fan-out is that of one projection, not of the fused three."""
    H, K = module.num_heads, module.head_dim
    D = module.qkv_proj.in_features
    std = math.sqrt(2 / (D + H * K))
    rows = torch.randn(H, 3, K, D, generator=generator) * std
    rows[:, 2] *= gain
    module.qkv_proj.weight.data.copy_(rows.view(3 * H * K, D))
    _xavier(module.output_gate.weight, 1.0, generator)
    _xavier(module.out_proj.weight, gain, generator)


def _xavier(weight: torch.Tensor, gain: float, generator: torch.Generator) -> None:
    """Normal with variance ``2 gain^2 / (rows + columns)`` (Glorot and Bengio, 2010)."""
    std = gain * math.sqrt(2 / (weight.shape[0] + weight.shape[1]))
    weight.data.copy_(torch.randn(weight.shape, generator=generator) * std)
