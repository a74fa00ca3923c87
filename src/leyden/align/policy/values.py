"""Advantages of single tokens, by a critic: its value of a token is the reward that it expects from there on.

An episode is one rollout; its states are the places at which the policy drew a token, and what the environment said
between belongs to the state that follows. The episode ends with its last token, where the reward is given, and is worth
nothing from there on; also where a limit has cut it, since it was graded as it is.

Everything but the loss is NumPy in float64, on the M tokens that N rollouts have drawn, one rollout behind the other:
``bounds`` [N+1] says where each begins, and the end (:func:`drawn_tokens`). A rollout may have no token.
"""

import numpy as np
import torch

from leyden.ops import IGNORE_INDEX

_LEAST_VARIANCE = 1e-8
"""Added to the variance that advantages are whitened by, as TRL and verl do."""


def drawn_tokens(labels: np.ndarray, cu_seqlens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a packed row has labels, and which of them are of one document.

    Args:
        labels: [T] int64, of which the drawn tokens alone are not :data:`leyden.ops.IGNORE_INDEX`. The label of a place
            is the token that was drawn there.
        cu_seqlens: [N+1], where each document of the row begins, and the end.

    Returns:
        [M] places in the row, and [N+1] bounds of the documents among them.
    """
    is_drawn = labels != IGNORE_INDEX
    before = np.concatenate([[0], np.cumsum(is_drawn)])
    return np.flatnonzero(is_drawn), before[cu_seqlens]


def token_rewards(rewards: np.ndarray, bounds: np.ndarray, penalties: np.ndarray | None = None) -> np.ndarray:
    """[M] float64: minus the penalty at each token, and the reward of a rollout at its last.

    Args:
        rewards: [N], of the rollouts; finite.
        bounds: [N+1].
        penalties: [M], as of a divergence from a reference (InstructGPT, arXiv 2203.02155, equation 2, token by token);
            None: there are none.
    """
    given = np.zeros(bounds[-1]) if penalties is None else -np.asarray(penalties, np.float64)
    some = bounds[1:] > bounds[:-1]
    given[bounds[1:][some] - 1] += rewards[some]
    return given


def generalised_advantages(
    rewards: np.ndarray, values: np.ndarray, bounds: np.ndarray, *, gamma: float, gae_lambda: float
) -> np.ndarray:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16), within each rollout.

    With ``delta_t = r_t + gamma V_{t+1} - V_t``, where V behind the last token is 0, the advantage of token t is the
    sum of ``(gamma gae_lambda)^l delta_{t+l}`` over l = 0, 1, ... to the end of its rollout. An advantage and the value
    together are the return that the critic is to expect. With ``gae_lambda = 1`` that is the sum of the (discounted)
    rewards that followed, whatever the critic said; with 0, ``r_t + gamma V_{t+1}``.

    Args:
        rewards, values: [M].
        bounds: [N+1].
        gamma: the discount of a later reward, for each token.
        gae_lambda: how much is believed of later rewards, against later values.

    Returns:
        [M] float64.
    """
    found = np.zeros(len(rewards))
    lengths, ends = np.diff(bounds), bounds[1:]
    value_behind, advantage_behind = np.zeros(len(lengths)), np.zeros(len(lengths))
    for back in range(int(lengths.max(initial=0))):  # a token of every rollout at once, from their ends
        (live,) = np.nonzero(lengths > back)
        at = ends[live] - 1 - back
        delta = rewards[at] + gamma * value_behind[live] - values[at]
        found[at] = advantage_behind[live] = delta + gamma * gae_lambda * advantage_behind[live]
        value_behind[live] = values[at]
    return found


def whitened(advantages: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Advantages minus their mean, divided by their standard deviation, both over the tokens that are counted.

    Args:
        advantages: [M].
        counted: [M] bool; where fewer than two are, nothing is changed.
    """
    known = advantages[counted]
    if len(known) < 2:
        return advantages
    return (advantages - known.mean()) / np.sqrt(known.var(ddof=1) + _LEAST_VARIANCE)


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float | None:
    """``1 - Var(returns - values) / Var(returns)``: 1 where the critic foresees all, 0 where a constant would do as
    well, below 0 where it would do better. None where the returns are all alike, or there are none.

    Args:
        values, returns: [M].
    """
    spread = returns.var() if len(returns) else 0.0
    return float(1 - (returns - values).var() / spread) if spread else None


def value_losses(
    values: torch.Tensor, before: torch.Tensor, returns: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error of each value, and where it is clipped.

    With a clip c the loss is ``max((V - R)^2, (V_before + clip(V - V_before, -c, c) - R)^2) / 2``: a value that has
    come nearer to its return by more than c learns no further from the same rollouts, as in OpenAI's implementation of
    PPO, TRL, OpenRLHF and verl.

    Args:
        values: now; differentiable.
        before: when the rollouts were drawn, constants.
        returns: constants.
        clip: c; 0: values are not clipped.

    Returns:
        The losses and bool, of the shape of ``values``; where the second is true, the loss has no gradient.
    """
    free = (values - returns).square()
    if not clip:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    moved = values - before
    held = (before + moved.clamp(-clip, clip) - returns).square()
    clipped = (moved.abs() > clip) & (held > free)  # within the clip they differ by rounding alone
    return torch.where(clipped, held, free) / 2, clipped
