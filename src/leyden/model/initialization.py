"""Initial weights: Xavier, with DeepNorm's gain on what feeds the residual (arXiv 2501.08313, section 4.3).

Every weight, and of the experts every expert, is drawn from a generator of its own, so that a rank of many draws what
it holds and nothing else, and any number of ranks begins with the same weights.
"""

import hashlib
import math

import torch
from torch import nn

from leyden.model.config import ModelConfig
from leyden.model.induction import induction_weight
from leyden.model.vision.initialization import initial_vision_weight

_PLAIN = ("embed_tokens", "lm_head", "q_proj", "k_proj", "output_gate", "mlp.gate", "coefficient", "eh_proj")
_LATENT = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa")
_DEVIATION = 0.02
"""Of ``initialization = "normal"``."""
_SCALED = ("v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj")


def initialize(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every weight of ``model`` in place. A model on the meta device is left as it is."""
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            parameter.data.copy_(initial_weight(name, tuple(parameter.shape), config, seed))


def initial_weight(
    name: str, shape: tuple[int, ...], config: ModelConfig, seed: int, experts: tuple[int, int] | None = None
) -> torch.Tensor:
    """The initial value of the weight ``name``, float32 on the CPU.

    Norms are one, biases of routers zero, a score head is normal with variance 1 / (D + 1), matrices Xavier normal.
    With DeepNorm residuals the value, output and feed-forward projections are scaled by the gain
    ``beta = (8 N)^(-1/4)`` (arXiv 2203.00555, decoder-only), the query and key projections by 1.

    With ``initialization = "normal"`` all matrices are normal with a standard deviation of 0.02 instead, cut off at
    three of them (OLMo 2, arXiv 2501.00656, section 3.2; the cut is its code's). The vision side has its own
    (:mod:`leyden.model.vision.initialization`).

    Args:
        name: as in ``model.named_parameters()``.
        shape: of the whole weight.
        config: of the model.
        seed: the same seed gives the same weights.
        experts: of stacked experts, only those from the first number up to the second; the result has their shape.
    """
    if config.vision is not None and name.startswith("vision."):
        return initial_vision_weight(name, shape, config.vision, _generator(seed, name))
    if config.initialization == "normal":
        return _normal_weight(name, shape, seed, experts)
    usual = _xavier_weight(name, shape, config, seed, experts)
    if config.initialization == "xavier" or name.startswith("mtp."):  # no part of the circuit
        return usual
    return induction_weight(name, usual, config, lambda of, size: draw_normal(of, size, seed))


def _normal_weight(name: str, shape: tuple[int, ...], seed: int, experts: tuple[int, int] | None) -> torch.Tensor:
    """Arguments as of :func:`initial_weight`."""
    if len(shape) == 1:
        return torch.ones(shape)
    if len(shape) == 2:
        return _truncated_normal(shape, _generator(seed, name))
    first, last = experts or (0, shape[0])
    each = [_truncated_normal(shape[1:], _generator(seed, f"{name}.{e}")) for e in range(first, last)]
    return torch.stack(each) if each else torch.empty(0, *shape[1:])


def _truncated_normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    limit = 3 * _DEVIATION
    return nn.init.trunc_normal_(torch.empty(shape), 0.0, _DEVIATION, -limit, limit, generator=generator)


def _xavier_weight(
    name: str, shape: tuple[int, ...], config: ModelConfig, seed: int, experts: tuple[int, int] | None
) -> torch.Tensor:
    """Arguments as of :func:`initial_weight`."""
    gain = (8 * config.num_hidden_layers) ** -0.25 if config.postnorm else 1.0
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("expert_bias") else torch.ones(shape)
    if name == "score.weight":  # scores begin with a variance of about 1 (arXiv 2009.01325, appendix B.1)
        return torch.randn(shape, generator=_generator(seed, name)) / math.sqrt(shape[1] + 1)
    if len(shape) == 3:
        first, last = experts or (0, shape[0])
        halves = 2 if name.endswith("gate_up_proj") else 1
        each = [_stacked(shape[1:], gain, _generator(seed, f"{name}.{e}"), halves) for e in range(first, last)]
        return torch.stack(each) if each else torch.empty(0, *shape[1:])
    generator, local = _generator(seed, name), name.removesuffix(".weight")
    if local.endswith("qkv_proj"):
        return _queries_keys_values(shape, gain, config, generator)
    if local.endswith("kv_b_proj"):
        return _keys_values(shape, gain, config, generator)
    if local.endswith(_PLAIN + _LATENT):
        return _xavier(shape, 1.0, generator)
    if local.endswith(_SCALED):
        return _xavier(shape, gain, generator)
    raise ValueError(f"the weight {name} has no initial value.")


def draw_normal(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal numbers, float32, which follow from their name and the seed alone."""
    return torch.randn(shape, generator=_generator(seed, name))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _queries_keys_values(
    shape: tuple[int, ...], gain: float, config: ModelConfig, generator: torch.Generator
) -> torch.Tensor:
    """Query and key rows by 1, value rows by the gain; fan-out is that of one projection, not of the fused three."""
    H, K, D = config.num_attention_heads, config.head_dim, shape[1]
    rows = torch.randn(H, 3, K, D, generator=generator) * math.sqrt(2 / (D + H * K))
    rows[:, 2] *= gain
    return rows.view(shape)


def _keys_values(shape: tuple[int, ...], gain: float, config: ModelConfig, generator: torch.Generator) -> torch.Tensor:
    """What makes heads of latents: key rows by 1, value rows by the gain, each with the fan-out of its own rows."""
    H, nope, value = config.num_attention_heads, config.qk_nope_head_dim or 0, config.v_head_dim or 0
    rows = torch.randn(H, nope + value, shape[1], generator=generator)
    rows[:, :nope] *= math.sqrt(2 / (shape[1] + H * nope))
    rows[:, nope:] *= gain * math.sqrt(2 / (shape[1] + H * value))
    return rows.view(shape)


def _stacked(shape: tuple[int, ...], gain: float, generator: torch.Generator, count: int) -> torch.Tensor:
    """``count`` equal matrices, one on top of another."""
    return torch.cat([_xavier((shape[0] // count, shape[1]), gain, generator) for _ in range(count)])


def _xavier(shape: tuple[int, ...], gain: float, generator: torch.Generator) -> torch.Tensor:
    """Normal with variance ``2 gain^2 / (rows + columns)`` (Glorot and Bengio, 2010)."""
    return torch.randn(shape, generator=generator) * (gain * math.sqrt(2 / sum(shape)))
