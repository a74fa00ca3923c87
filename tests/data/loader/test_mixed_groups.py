"""A mixture of sources in groups: each row has whole groups of one source and their values, as that source has them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data import GroupedBatches, GroupedDocuments, MixedBatches, MixtureSchedule, shards_in_memory

SEQ = 24


def source(first, groups, **changes):
    """Documents whose tokens are all different; a token's value is its number, a document's its first token's."""
    lengths = [length for group in groups for length in group]
    ends = first + np.cumsum(lengths)
    documents = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    shards = shards_in_memory(documents, vocab_size=100_000)
    values = {
        "per_token": {"number": np.arange(first, first + sum(lengths), dtype=np.int32)},
        "per_document": {"first": np.array([[document[0], -document[0]] for document in documents])},
    }
    return GroupedDocuments(shards, np.cumsum([0, *map(len, groups)]), **(values | changes))


def mixture(**more):
    return MixtureSchedule.parse(
        {"point": [{"weights": {"a": 1, "b": 2}, **more}], **({"length_bounds": [9]} if more else {})}, "test"
    ).timed(9999)


groups_of_lengths = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=3), min_size=1, max_size=12)


def rows_of(batch):
    """Each row of a batch as all that it holds, its groups counted from 0."""
    bounds, rows = batch.cu_seqlens, []
    for start in range(0, batch.tokens.shape[1], SEQ):
        inside = (bounds[:-1] >= start) & (bounds[:-1] < start + SEQ)
        groups = batch.groups[inside]
        groups = torch.where(groups >= 0, groups - groups[0], groups)
        place = slice(start, start + SEQ)
        values = [batch.tokens[0, place], batch.labels[0, place], batch.per_token["number"][0, place]]
        values += [bounds[:-1][inside] - start, groups, batch.per_document["first"][inside]]
        rows.append(tuple(str(value.tolist()) for value in values))
    return rows


@settings(max_examples=30, deadline=None)
@given(groups_of_lengths, groups_of_lengths, st.integers(1, 5), st.integers(0, 9))
def test_every_row_is_one_of_its_source_alone(of_a, of_b, sequences, seed):
    sources = {"a": source(1, of_a), "b": source(50_000, of_b)}
    size = {"seq_len": SEQ, "batch_tokens": SEQ * sequences, "seed": seed}
    mixed = MixedBatches(sources, mixture(), **size)
    alone = {name: GroupedBatches(each, **size | {"batch_tokens": SEQ}) for name, each in sources.items()}
    taken = {"a": 0, "b": 0}
    for number in range(4):
        batch = mixed.batch(number)
        held = batch.groups[batch.groups >= 0]
        assert held.unique_consecutive().tolist() == list(range(int(held.max()) + 1))
        for row in rows_of(batch):
            name = "b" if int(row[0][1:].split(",")[0].rstrip("]")) >= 50_000 else "a"
            assert row == rows_of(alone[name].batch(taken[name]))[0]
            taken[name] += 1
        shares = [mixed.share(number, rank, sequences) for rank in range(sequences)]
        assert torch.equal(torch.cat([share.tokens for share in shares], 1), batch.tokens)
    planned = {part.source: part for part in mixed.plan(4)}
    assert {name: planned[name].sequences for name in taken} == taken
    assert len(mixed.trace(0)) == int((mixed.batch(0).groups >= 0).sum())


def test_classes_are_of_the_lengths_of_groups():
    sources = {"a": source(1, [[2, 2], [6, 6], [3], [12]]), "b": source(50_000, [[5, 5]])}
    mixed = MixedBatches(sources, mixture(lengths=[0.5, 0.5]), seq_len=SEQ, batch_tokens=2 * SEQ, seed=0)
    parts = {(part.source, part.longer_than): part for part in mixed.plan(10)}
    assert {key: part.documents for key, part in parts.items()} == {("a", 0): 3, ("a", 9): 3, ("b", 9): 2}
    assert parts["a", 0].sequences == 10


def test_sources_that_cannot_be_mixed():
    sources = {"a": source(1, [[2, 2]]), "b": source(50, [[5]], per_token={})}
    size = {"seq_len": SEQ, "batch_tokens": SEQ, "seed": 0}
    with pytest.raises(UserError, match=r"must carry the same values in groups.*'a' has.*number int32 a token"):
        MixedBatches(sources, mixture(), **size)
    with pytest.raises(UserError, match="documents without groups"):
        MixedBatches(sources | {"b": sources["b"].shards}, mixture(), **size)
    with pytest.raises(UserError, match="A group is never split"):
        MixedBatches({"a": source(1, [[20, 20]]), "b": source(90, [[1]])}, mixture(), **size)
