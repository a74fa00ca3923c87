"""Completions as packed rows, with all that the objective reads of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from leyden.align.policy.advantages import balanced
from leyden.align.policy.algorithm import Algorithm
from leyden.align.policy.objective import ADVANTAGE, COUNT, DRAWN, EARLIER, LOSS_WEIGHT, REFERENCE, log_probs
from leyden.align.rollouts.drawing import Rollout
from leyden.align.rollouts.sequences import share_of
from leyden.core.transfers import sent
from leyden.data import Batch, GroupedDocuments, shards_in_memory
from leyden.data.loader.once import OnceBatches
from leyden.model import Features, HybridLM
from leyden.model.losses import TokenLossModel
from leyden.ops import IGNORE_INDEX
from leyden.parallel.objective import Sums, sums_of_row
from leyden.train import TrainState

SAMPLED = "sampled"
"""Of each token, the log-probability that the engine computed, under the model's own distribution."""
REWARD, PLACE = "reward", "place"
"""Of each completion, with a critic: its reward, 0 where there is none, and its place among those of the step."""
KEPT = "kept"
"""Of each token that earlier weights drew, its log-probability under them."""


def pack(
    rollouts: Sequence[Rollout],
    worth: np.ndarray,
    algorithm: Algorithm,
    *,
    max_tokens: int,
    seq_len: int,
    vocab_size: int,
    partial: bool = False,
) -> list[Batch]:
    """The sequences of one optimizer step, each a batch of its own. A completion without a reward has weight 0: it is
    computed and not learned from.

    Args:
        rollouts: the completions of the step.
        worth: [rollouts] float64, their advantages; with a critic, which makes those later, their rewards, which may be
            NaN.
        algorithm: its ``baseline``, ``denominator`` and ``balance`` are read.
        max_tokens: of a completion, for the constant denominator.
        seq_len: tokens of a sequence; a prompt with its completion is never cut.
        vocab_size: of the tokenizer.
        partial: as of :func:`laid`.
    """
    tokens = np.array([one.num_drawn for one in rollouts])
    weights = completion_weights(rollouts, algorithm, max_tokens)
    if algorithm.balance:
        worth = balanced(worth, weights[LOSS_WEIGHT] * tokens)
    named = {ADVANTAGE: worth}
    if algorithm.baseline == "critic":
        named = {REWARD: np.nan_to_num(worth), PLACE: np.arange(len(rollouts))}
    return laid(rollouts, {**named, **weights}, partial=partial, seq_len=seq_len, vocab_size=vocab_size)


def laid(
    rollouts: Sequence[Rollout],
    per_document: Mapping[str, np.ndarray],
    *,
    partial: bool,
    seq_len: int,
    vocab_size: int,
) -> list[Batch]:
    """Rollouts packed into sequences, each a batch of its own.

    Args:
        rollouts: at least one.
        per_document: [rollouts] by name.
        partial: tokens may have been drawn by earlier weights: then there are :data:`EARLIER` and :data:`KEPT`.
        seq_len, vocab_size: as of :func:`pack`.
    """
    learned = [np.concatenate([np.zeros(len(one.prompt.tokens), bool), one.learned]) for one in rollouts]
    shards = shards_in_memory(
        [[*one.prompt.tokens, *one.tokens] for one in rollouts], vocab_size=vocab_size, learned=learned
    )
    sampled = np.zeros(shards.num_tokens, np.float32)
    sampled[np.concatenate(learned)] = np.concatenate([one.log_probs[one.learned] for one in rollouts])
    per_token = {SAMPLED: sampled}
    if partial:
        kept = [np.pad(one.kept, (len(one.prompt.tokens), len(one.tokens) - len(one.kept))) for one in rollouts]
        before = [
            np.arange(len(x)) < len(one.prompt.tokens) + len(one.kept) for x, one in zip(kept, rollouts, strict=True)
        ]
        per_token |= {KEPT: np.concatenate(kept), EARLIER: np.concatenate(before) & np.concatenate(learned)}
    made = OnceBatches(
        GroupedDocuments(shards, np.arange(len(rollouts) + 1), per_token=per_token, per_document=per_document),
        seq_len=seq_len,
        batch_tokens=seq_len,
    )
    return [made.sequences(number, 1) for number in range(made.num_batches)]


def completion_weights(rollouts: Sequence[Rollout], algorithm: Algorithm, max_tokens: int) -> Mapping[str, np.ndarray]:
    """What each token of a completion weighs in the loss, and counts in the denominator: [rollouts] float64 each."""
    tokens = np.array([max(1, one.num_drawn) for one in rollouts], np.float64)
    measured = np.array([one.reward.reward is not None for one in rollouts], np.float64)
    count = measured if algorithm.denominator == "tokens" else measured / tokens
    return {LOSS_WEIGHT: measured / max_tokens if algorithm.denominator == "constant" else count, COUNT: count}


class _Scores:
    """An objective that keeps the log-probability of every label that is this rank's own, and minimises nothing.

    Args:
        temperature: as of :func:`scored`.

    Attributes:
        policy, own: [1, T] on the host, 0 where a label is another rank's: under the policy, and under the model's own
            distribution.
    """

    counts: str = "tokens"
    metrics: Sequence[str] = ()

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self.policy = self.own = torch.empty(0)

    def sums(self, model: TokenLossModel, features: Features, batch: Any, /) -> Sums:
        """See :class:`leyden.parallel.objective.Objective`."""
        labels = sent(batch.labels, features.hidden.device)
        policy = log_probs(model, features.hidden, labels, self._temperature).detach()
        own = policy if self._temperature == 1 else log_probs(model, features.hidden, labels).detach()
        self.policy, self.own = (kept_values(model, batch, values) for values in (policy, own))
        return Sums(features.hidden.sum() * 0, torch.zeros((), device=features.hidden.device))


def kept_values(model: TokenLossModel, batch: Batch, values: torch.Tensor) -> torch.Tensor:
    """[1, T'] values of this rank's own tokens in their places of the whole row: [1, T] on the host, 0 elsewhere."""
    places = model.ranks.own(torch.arange(batch.tokens.shape[1])[None])
    return torch.zeros(batch.tokens.shape, dtype=values.dtype).scatter(1, places, values.cpu())


def scored(
    micro_batch: Sequence[Batch], state: TrainState, reference: HybridLM | None, temperature: float
) -> tuple[list[Batch], torch.Tensor]:
    """Sequences with the log-probabilities under which their tokens were drawn, and under a reference model.

    They are computed in training mode, by the same operations on the same rows as those of an update. So at the first
    update, before a weight has changed, each has the same bits as the log-probability that it is compared with. All
    ranks call this with the same sequences, which go through the model at once, and each gets all of them.

    Tokens that earlier weights drew keep the log-probability under those, which was computed by this function as well,
    in the round in which they were drawn.

    Returns:
        The sequences with :data:`DRAWN`, :data:`REFERENCE` where there is a reference, and :data:`EARLIER` where they
        have it; and [labels], by how much trainer and engine differ in each token that was drawn in this round, under
        the model's own distribution.
    """
    ranks = state.rank_group
    row = share_of(micro_batch, *ranks.share)
    policy, own = _log_probs(row, state.model, temperature)
    found = [policy, own]
    if reference is not None:
        of_reference, _ = _log_probs(row, reference, temperature)
        # The reference is whole on every rank: of those that share a row, one tells.
        found.append(of_reference if ranks.counts_rows else torch.zeros_like(of_reference))
    everywhere = [of_all_ranks(values, len(micro_batch), state) for values in found]
    rows, drift = [], []
    for place, one in enumerate(micro_batch):
        values = [part[place][None] for part in everywhere]
        is_new = one.labels != IGNORE_INDEX
        named = {DRAWN: values[0], **({REFERENCE: values[2]} if reference is not None else {})}
        if EARLIER in one.per_token:
            named[EARLIER] = earlier = one.per_token[EARLIER]
            named[DRAWN] = one.per_token[KEPT].to(values[0].dtype).where(earlier, values[0])
            is_new &= ~earlier
        rows.append(replace(one, per_token=named))
        drift.append((values[1] - one.per_token[SAMPLED])[is_new])
    return rows, torch.cat(drift)


def of_all_ranks(values: torch.Tensor, num_sequences: int, state: TrainState) -> torch.Tensor:
    """[sequences, tokens] of a micro-batch, from what each rank has computed of its own row: [1, T]."""
    if state.rank_group.alone:
        return values.reshape(num_sequences, -1)
    rank, ranks = state.rank_group.share
    each = -(-num_sequences // ranks)
    own = values.reshape(each, -1)
    whole = torch.zeros(each * ranks, own.shape[1], dtype=torch.float64)
    whole[rank * each : (rank + 1) * each] = own
    (summed,) = state.rank_group.sum([whole])  # all but one of the terms of each are 0
    return summed[:num_sequences].cpu().to(values.dtype)


def _log_probs(row: Batch, model: Any, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    model.train()
    asked = _Scores(temperature)
    with torch.enable_grad():  # the operations that have a gradient may have other roundings
        sums_of_row(asked, model, row)
    return asked.policy, asked.own
