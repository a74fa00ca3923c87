"""An objective that is not pre-training, as a user would write it, and documents for it and for preferences.

It shows that :class:`leyden.train.Objective` and :class:`leyden.data.GroupedBatches` suffice: nothing else in the code
knows of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from leyden.align.policy.critic import RETURN, VALUE
from leyden.align.policy.objective import ADVANTAGE, COUNT, DRAWN, LOSS_WEIGHT, REFERENCE
from leyden.align.preference.batches import PairBatches, fit_pairs
from leyden.core.transfers import sent
from leyden.data import Batch, GroupedBatches, GroupedDocuments, TokenShards
from leyden.data.shards import TokenFile
from leyden.model import Features
from leyden.model.losses import TokenLossModel
from leyden.ops import IGNORE_INDEX
from leyden.train import Sums


@dataclass(frozen=True)
class ClippedPolicyGradient:
    """The clipped surrogate of PPO (arXiv 1707.06347, equation 7), with a weight and an advantage for each token.

    ``per_token`` has ``advantage``, ``weight``, and ``sampled``: the log-probability with which the token was drawn.
    """

    clip: float = 0.2
    counts: str = "completions"
    metrics: Sequence[str] = ("clipped", "kl")

    def sums(self, model: TokenLossModel, features: Features, batch: Batch, /) -> Sums:
        device = features.hidden.device
        labels = sent(batch.labels, device)
        nll, _ = model.token_nll(features.hidden, labels)
        # Each rank's part of the row, as nll is.
        given = {name: model.ranks.own(sent(values, device)) for name, values in batch.per_token.items()}
        weight = given["weight"].where(model.ranks.own(labels) != IGNORE_INDEX, 0)
        change = -nll - given["sampled"]
        ratio, advantage = change.exp(), given["advantage"]
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip) * advantage
        kl = ratio.detach() - 1 - change.detach()
        return Sums(
            loss=-(weight * torch.minimum(ratio * advantage, clipped)).sum(),
            weight=weight.sum(),
            metrics={"clipped": (weight * (clipped < ratio * advantage)).sum(), "kl": (weight * kl).sum()},
        )


def conversations(seed: int, groups: int, vocab_size: int = 101) -> tuple[TokenShards, np.ndarray]:
    """Random prompts with two answers each, which alone are learned; and the bounds of the groups."""
    drawn = np.random.default_rng(seed)
    documents = []
    for _ in range(groups):
        prompt = drawn.integers(0, vocab_size, drawn.integers(1, 5))
        answers = [drawn.integers(0, vocab_size, drawn.integers(1, 8)) for _ in range(2)]
        documents += [(np.concatenate([prompt, answer]), len(prompt)) for answer in answers]
    lengths = np.array([len(tokens) for tokens, _ in documents])
    learned = np.concatenate([np.arange(len(tokens)) >= start for tokens, start in documents])
    tokens = np.concatenate([tokens for tokens, _ in documents]).astype(np.int32)
    starts = np.cumsum(lengths) - lengths
    file = TokenFile(tokens, starts, lengths, np.packbits(learned, bitorder="little"))
    shards = TokenShards.over([file], Path("drawn"), f"drawn {seed}", vocab_size=vocab_size)
    return shards, np.arange(0, len(documents) + 1, 2)


def preferences(seed: int, seq_len: int, sequences: int) -> PairBatches:
    """Pairs, with log-probabilities of about the size that the small model's have."""
    shards, _ = conversations(seed, groups=40)
    reference = -np.random.default_rng(seed).uniform(2, 30, shards.num_documents)
    pairs = fit_pairs(shards, seq_len, "leave_out")
    return PairBatches(pairs, seq_len=seq_len, batch_tokens=seq_len * sequences, seed=seed, reference=reference)


def rollouts(seed: int, seq_len: int, sequences: int) -> GroupedBatches:
    """Answers with an advantage each, every token of which weighs 1 / length; about half of the ratios are clipped."""
    shards, bounds = conversations(seed, groups=40)
    drawn = np.random.default_rng(seed)
    tokens, lengths = shards.num_tokens, shards.lengths
    learned = shards.learned(shards.starts, lengths)
    answers = np.add.reduceat(learned, shards.starts, dtype=np.float64)
    values = {
        "advantage": np.repeat(drawn.standard_normal(len(lengths)), lengths),
        "weight": np.repeat(1 / answers, lengths),
        "sampled": -drawn.uniform(3, 7, tokens),
    }
    documents = GroupedDocuments(shards, bounds, per_token=values)
    return GroupedBatches(documents, seq_len=seq_len, batch_tokens=seq_len * sequences, seed=seed)


def segments(batch: Batch) -> list[slice]:
    """The documents of a batch, padding left out."""
    assert batch.groups is not None
    bounds = itertools.pairwise(batch.cu_seqlens.tolist())
    return [slice(*pair) for pair, group in zip(bounds, batch.groups.tolist(), strict=True) if group >= 0]


def completions(seed: int, seq_len: int, sequences: int) -> GroupedBatches:
    """Answers with what :class:`leyden.align.policy.PolicyGradient` and :class:`leyden.align.policy.ValueLoss` read;
    about half of the ratios and many values are clipped."""
    shards, bounds = conversations(seed, groups=40)
    drawn, count = np.random.default_rng(seed), shards.num_documents
    sampled = -drawn.uniform(3, 7, shards.num_tokens)
    of_critic = np.random.default_rng(seed + 1).standard_normal((3, shards.num_tokens))
    documents = GroupedDocuments(
        shards,
        bounds,
        per_token={
            DRAWN: sampled,
            REFERENCE: sampled + drawn.normal(0, 0.3, shards.num_tokens),
            **dict(zip((ADVANTAGE, VALUE, RETURN), of_critic, strict=True)),
        },
        per_document={
            ADVANTAGE: drawn.standard_normal(count),
            LOSS_WEIGHT: drawn.uniform(0.1, 1, count),
            COUNT: drawn.uniform(0.1, 1, count),
        },
    )
    return GroupedBatches(documents, seq_len=seq_len, batch_tokens=seq_len * sequences, seed=seed)
