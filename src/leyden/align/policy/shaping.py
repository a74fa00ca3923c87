"""What the length of completions adds to their rewards, before advantages are computed of them.

Like advantages, these are functions of [prompts, group] arrays in float64; NaN stands for no reward, and stays.
"""

import numpy as np


def shorter_is_better(rewards: np.ndarray, tokens: np.ndarray, weight: float) -> np.ndarray:
    """The length reward of Kimi k1.5 (arXiv 2501.12599, section 2.3.3), added to the rewards.

    With ``l = 1/2 - (tokens - shortest) / (longest - shortest)`` over the group, a right completion (reward 1) gets
    ``weight * l`` and another ``weight * min(0, l)``: right ones gain by being short, and no wrong one does. Nothing is
    added where all of a group are equally long.

    Args:
        rewards, tokens: [prompts, group].
        weight: of the length.
    """
    shortest, longest = tokens.min(1, keepdims=True), tokens.max(1, keepdims=True)
    length = 0.5 - (tokens - shortest) / np.maximum(longest - shortest, 1)
    gained = np.where(rewards >= 1, length, np.minimum(length, 0.0))
    return rewards + weight * np.where(longest > shortest, gained, 0.0)


def overlong_is_worse(rewards: np.ndarray, tokens: np.ndarray, max_tokens: int, margin: int) -> np.ndarray:
    """The soft penalty of DAPO (arXiv 2503.14476, equation 13), added to the rewards.

    It is 0 up to ``max_tokens - margin`` tokens, and falls from there in a line to -1 at ``max_tokens``.

    Args:
        rewards, tokens: [prompts, group].
        max_tokens: of a completion.
        margin: tokens before it; at least 1.
    """
    return rewards - np.clip((tokens - (max_tokens - margin)) / margin, 0.0, 1.0)
