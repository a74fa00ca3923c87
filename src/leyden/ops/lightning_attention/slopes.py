"""The decay slopes of lightning attention, as MiniMax-Text-01 was released with them."""

import math
from typing import Literal

import torch


def lightning_slopes(
    num_heads: int, layer: int, num_layers: int, factor: Literal["layer", "previous_layer", "none"] = "layer"
) -> torch.Tensor:
    """Decay slopes of one layer: the state decays by ``exp(-slope)`` per token.

    The ALiBi slopes ``2^(-8(h+1)/H)`` times ``1 - layer/(num_layers-1) + 1e-5``, so that deeper layers remember
    longer (MiniMax-Text-01's modelling code). Where H is not a power of two, ALiBi's interpolation: the slopes of the
    power of two below H, then every second slope of the one above.

    Args:
        num_heads: H, at least 1.
        layer: absolute index of the layer, softmax layers counted, from 0.
        num_layers: how many layers the whole model has.
        factor: of the layer: ``"layer"`` as above; ``"previous_layer"``, ``1 - (layer-1)/(num_layers-1) + 1e-5``, as
            the remote code of Ring-linear-2.0 and Ling-2.5 has it; ``"none"``, the ALiBi slopes themselves, as
            MiniCPM-SALA and HypeNet have them.

    Returns:
        float32 [H], positive, on the CPU.

    Raises:
        ValueError: no head, a layer outside the model, or a factor that is none of these.
    """
    if num_heads < 1 or not 0 <= layer < num_layers:
        raise ValueError(
            f"lightning_slopes: num_heads={num_heads} must be at least 1 and layer={layer} "
            f"must lie in 0..{num_layers - 1}."
        )
    slopes = [base * _layer_factor(layer, num_layers, factor) for base in _alibi(num_heads)]
    return torch.tensor(slopes, dtype=torch.float32, device="cpu")


def _layer_factor(layer: int, num_layers: int, factor: str) -> float:
    if factor == "none":
        return 1.0
    if factor not in ("layer", "previous_layer"):
        raise ValueError(f"lightning_slopes: factor={factor!r} must be 'layer', 'previous_layer' or 'none'.")
    counted = layer if factor == "layer" else layer - 1
    return 1 - counted / (num_layers - 1) + 1e-5 if num_layers > 1 else 1 + 1e-5


def _alibi(num_heads: int) -> list[float]:
    """``2^(-8(h+1)/H)`` for a power of two; interpolated between two powers of two otherwise."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    if power < num_heads:
        slopes += _alibi(2 * power)[0::2][: num_heads - power]
    return slopes
