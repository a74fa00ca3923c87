"""Rollouts that are set aside between two rounds: their log-probabilities, and how a checkpoint keeps them."""

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from leyden.align.policy.objective import DRAWN
from leyden.align.rewards.reward import Reward
from leyden.align.rollouts.drawing import Unfinished, as_rollout
from leyden.align.rollouts.prompts import Prompts
from leyden.align.rollouts.rows import laid
from leyden.align.rollouts.turns import Drawn
from leyden.data import Batch

_NUMBER = "number"
_KEPT_FIELDS = [field.name for field in fields(Drawn) if field.name != "prompt"]

Scored = Callable[[Sequence[Batch]], tuple[list[Batch], torch.Tensor]]
"""Sequences with their log-probabilities, and the drift: :func:`leyden.align.rollouts.rows.scored` of a stage."""


def keep_log_probs(waiting: Sequence[Unfinished], scored: Scored, *, seq_len: int, vocab_size: int) -> torch.Tensor:
    """Note the log-probabilities of what was just drawn, while the weights that drew it are there.

    They are the trainer's, under the policy's temperature, which the engine's are not.

    Args:
        waiting: rollouts; to those that have tokens without a kept log-probability, these are added.
        scored: computes them; of several ranks, all call this.
        seq_len, vocab_size: as of :func:`leyden.align.rollouts.rows.laid`.

    Returns:
        [tokens], the drift of each that was drawn in this round.
    """
    new = [one for group in waiting for one in group if len(one.kept) < len(one.tokens)]
    if not new:
        return torch.zeros(0)
    rollouts = [as_rollout(one, Reward(None)) for one in new]
    numbers = {_NUMBER: np.arange(len(new), dtype=np.float64)}
    rows, drift = scored(laid(rollouts, numbers, partial=True, seq_len=seq_len, vocab_size=vocab_size))
    for row in rows:
        assert row.groups is not None, "rollouts are in groups of one"
        for segment in torch.nonzero(row.groups >= 0).flatten().tolist():
            one = new[int(row.per_document[_NUMBER][segment])]
            # The value of a token stands where it is the label: one place before it.
            first = int(row.cu_seqlens[segment]) + len(one.prompt.tokens) - 1
            found = row.per_token[DRAWN][0, first : first + len(one.tokens)].tolist()
            one.kept += found[len(one.kept) :]
    return drift


def packed_waiting(waiting: Sequence[Unfinished]) -> str:
    """Rollouts as ASCII; :func:`unpacked_waiting` gives the same ones. Of the prompts, only their places are kept."""
    told = [[{name: getattr(one, name) for name in _KEPT_FIELDS} for one in group] for group in waiting]
    return base64.b64encode(zlib.compress(json.dumps(told).encode(), level=1)).decode("ascii")


def unpacked_waiting(text: str, prompts: Prompts) -> list[Unfinished]:
    """The rollouts of :func:`packed_waiting`."""
    told: list[list[dict[str, Any]]] = json.loads(zlib.decompress(base64.b64decode(text)))
    return [[Drawn(prompts.at(one["place"], 1)[0], **one) for one in group] for group in told]
