"""Completions as packed rows, with all that the objective reads of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from leyden.align.policy.advantages import balanced
from leyden.align.policy.algorithm import Algorithm
from leyden.align.policy.objective import ADVANTAGE, COUNT, DRAWN, LOSS_WEIGHT, REFERENCE, log_probs
from leyden.align.rollouts.drawing import Rollout
from leyden.core.transfers import sent
from leyden.data import Batch, GroupedDocuments, shards_in_memory
from leyden.data.loader.once import OnceBatches
from leyden.model import HybridLM
from leyden.ops import IGNORE_INDEX

SAMPLED = "sampled"
"""Of each token, the log-probability that the engine computed, under the model's own distribution."""


def pack(
    rollouts: Sequence[Rollout],
    advantages: np.ndarray,
    algorithm: Algorithm,
    *,
    max_tokens: int,
    seq_len: int,
    micro_batch_tokens: int,
    vocab_size: int,
) -> list[Batch]:
    """The micro-batches of one optimizer step. One without a reward has weight 0: it is computed and not learned from.

    Args:
        rollouts: the completions of the step.
        advantages: [rollouts] float64.
        algorithm: its ``denominator`` and ``balance`` are read.
        max_tokens: of a completion, for the constant denominator.
        seq_len: tokens of a sequence; a prompt with its completion is never cut.
        micro_batch_tokens: tokens of a micro-batch at most, a multiple of it.
        vocab_size: of the tokenizer.
    """
    tokens = np.array([len(one.tokens) for one in rollouts])
    learned = [np.arange(len(one.prompt.tokens) + len(one.tokens)) >= len(one.prompt.tokens) for one in rollouts]
    shards = shards_in_memory(
        [[*one.prompt.tokens, *one.tokens] for one in rollouts], vocab_size=vocab_size, learned=learned
    )
    sampled = np.zeros(shards.num_tokens, np.float32)
    sampled[np.concatenate(learned)] = np.concatenate([one.log_probs for one in rollouts])
    weights = completion_weights(rollouts, algorithm, max_tokens)
    if algorithm.balance:
        advantages = balanced(advantages, weights[LOSS_WEIGHT] * tokens)
    made = OnceBatches(
        GroupedDocuments(
            shards,
            np.arange(len(rollouts) + 1),
            per_token={SAMPLED: sampled},
            per_document={ADVANTAGE: advantages, **weights},
        ),
        seq_len=seq_len,
        batch_tokens=seq_len,
    )
    at_once = micro_batch_tokens // seq_len
    return [
        made.sequences(first, min(at_once, made.num_batches - first)) for first in range(0, made.num_batches, at_once)
    ]


def completion_weights(rollouts: Sequence[Rollout], algorithm: Algorithm, max_tokens: int) -> Mapping[str, np.ndarray]:
    """What each token of a completion weighs in the loss, and counts in the denominator: [rollouts] float64 each."""
    tokens = np.array([max(1, len(one.tokens)) for one in rollouts], np.float64)
    measured = np.array([one.reward.reward is not None for one in rollouts], np.float64)
    count = measured if algorithm.denominator == "tokens" else measured / tokens
    return {LOSS_WEIGHT: measured / max_tokens if algorithm.denominator == "constant" else count, COUNT: count}


def scored(batch: Batch, model: HybridLM, reference: HybridLM | None, temperature: float) -> tuple[Batch, torch.Tensor]:
    """A row with the log-probabilities under which its tokens were drawn, and under a reference model.

    They are computed in training mode, by the same operations as those of an update. So at the first update, before a
    weight has changed, each has the same bits as the log-probability that it is compared with.

    Returns:
        The row with :data:`DRAWN`, and :data:`REFERENCE` where there is a reference; and [labels] float32, by how much
        trainer and engine differ in each drawn token under the model's own distribution.
    """
    learned = batch.labels != IGNORE_INDEX
    found, own = _log_probs(batch, model, temperature)
    drift = (own - batch.per_token[SAMPLED])[learned]
    values: dict[str, Any] = {DRAWN: found}
    if reference is not None:
        values[REFERENCE], _ = _log_probs(batch, reference, temperature)
    return replace(batch, per_token=values), drift


def _log_probs(batch: Batch, model: HybridLM, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """[1, T] float32 on the host: under the policy, and under the model's own distribution."""
    device = model.norm.weight.device
    model.train()
    with torch.enable_grad():  # the operations that have a gradient may have other roundings
        hidden = model.features(sent(batch.tokens, device), cu_seqlens=batch.cu_seqlens).hidden
        labels = sent(batch.labels, device)
        policy = log_probs(model, hidden, labels, temperature).detach()
        own = policy if temperature == 1 else log_probs(model, hidden, labels).detach()
    return policy.cpu(), own.cpu()
