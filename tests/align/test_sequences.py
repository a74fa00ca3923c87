"""Sequences joined and dealt are the rows that packing makes of them at once."""

import numpy as np
import torch

from leyden.align.rollouts.sequences import joined, share_of
from leyden.data import Batch, GroupedDocuments, shards_in_memory
from leyden.data.loader.once import OnceBatches


def made(lengths: list[int]) -> OnceBatches:
    shards = shards_in_memory([[number + 1] * length for number, length in enumerate(lengths)], vocab_size=99)
    values = {"value": np.arange(len(lengths)) + 0.5}
    tokens = {"token": np.arange(sum(lengths), dtype=np.float32)}
    return OnceBatches(
        GroupedDocuments(shards, np.arange(len(lengths) + 1), per_token=tokens, per_document=values),
        seq_len=16,
        batch_tokens=16,
    )


def same(found: Batch, expected: Batch) -> None:
    for name in ("tokens", "labels", "cu_seqlens", "groups"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.per_document["value"], expected.per_document["value"])
    assert torch.equal(found.per_token["token"], expected.per_token["token"])


def test_joined_is_packed_at_once() -> None:
    batches = made([3, 9, 16, 5, 7, 12, 4])
    assert batches.num_batches == 4
    single = [batches.sequences(number, 1) for number in range(4)]
    same(joined(single), batches.sequences(0, 4))
    same(joined(single[1:3]), batches.sequences(1, 2))


def test_shares_make_up_the_whole_and_have_one_size() -> None:
    batches = made([3, 9, 16, 5, 7])
    single = [batches.sequences(number, 1) for number in range(batches.num_batches)]
    assert len(single) == 3
    first, second = (share_of(single, rank, 2) for rank in range(2))
    same(first, batches.sequences(0, 2))
    assert second.tokens.shape == first.tokens.shape
    assert (second.labels[0, 16:] == -100).all() and (second.groups is not None and second.groups[-1] == -1)
    assert second.per_document["value"][-1] == 0
    same(share_of(single, 0, 1), batches.sequences(0, 3))
