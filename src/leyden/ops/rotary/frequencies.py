"""How fast the pairs of a head turn: plain RoPE (arXiv 2104.09864) and YaRN (arXiv 2309.00071), in float64.

Position interpolation (arXiv 2306.15595), which divides every position by a factor, divides plain frequencies by it.
"""

import math

import torch


def rotary_frequencies(rotary_dim: int, theta: float, device: torch.device | None = None) -> torch.Tensor:
    """``theta^(-2i / rotary_dim)``, by which pair i turns from one position to the next.

    Args:
        rotary_dim: how many dims of a head turn; even.
        theta: the RoPE base.
        device: where the result is to lie.

    Returns:
        [rotary_dim / 2] float64, in radians a token.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=device) / max(rotary_dim, 1)
    return theta**-exponents


def yarn_frequencies(
    rotary_dim: int,
    theta: float,
    *,
    factor: float,
    original_positions: int,
    beta_fast: float,
    beta_slow: float,
    device: torch.device | None = None,
) -> torch.Tensor:
    """YaRN's frequencies ("NTK by parts"): pairs that turn often within the original context keep theirs, pairs that
    turn less than ``beta_slow`` times are slowed down by ``factor``, and a linear ramp over the pairs lies between.

    The ends of the ramp are whole pairs, rounded outwards, as in the code that the authors published and in
    transformers.

    Args:
        rotary_dim, theta, device: as of :func:`rotary_frequencies`; theta is above 1.
        factor: by how much the context grows.
        original_positions: how many positions the model was trained on before.
        beta_fast, beta_slow: turns within these at which a pair keeps its frequency, and below which it is slowed down
            in full.

    Returns:
        [rotary_dim / 2] float64.
    """
    plain = rotary_frequencies(rotary_dim, theta, device)

    def pair_of(turns: float) -> float:
        return rotary_dim * math.log(original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_of(beta_fast)), 0)
    last = min(math.ceil(pair_of(beta_slow)), rotary_dim - 1)
    width = last - first or 1e-3  # the ramp is a step where its ends meet
    pairs = torch.arange(rotary_dim // 2, dtype=torch.float64, device=device)
    slowed = ((pairs - first) / width).clamp(0, 1)
    return plain * (1 - slowed) + plain / factor * slowed
