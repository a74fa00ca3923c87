"""Groups of documents with values: no group is split, no document is lost, every value stands with its label."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data import GroupedBatches, GroupedDocuments, Prefetched, TokenShards
from leyden.data.loader import best_fit
from leyden.data.shards import TokenFile

groups_of_lengths = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=25)
"""The lengths of the documents of each group."""
MOST = 36
"""Tokens of the longest group that is drawn."""


def _documents(numbered, groups, files=1):
    """Token n of all, from 1, has the values n / 2 and -n; document d has the values d and [d, d + 0.25]."""
    lengths = list(itertools.chain.from_iterable(groups))
    shards = numbered(lengths, files=files)
    number, document = np.arange(1, sum(lengths) + 1), np.arange(len(lengths))
    return GroupedDocuments(
        shards,
        np.cumsum([0, *map(len, groups)]),
        per_token={"half": (number / 2).astype(np.float32), "minus": -number},
        per_document={"number": document, "pair": np.stack([document, document + 0.25], 1)},
    )


def _batches(documents, seq_len=MOST, sequences=4, **changes):
    return GroupedBatches(documents, seq_len=seq_len, batch_tokens=seq_len * sequences, seed=3, **changes)


def _check(batch, documents, seq_len):
    """Every segment by itself, from its tokens alone; the groups of the batch, each a list of documents."""
    bounds = batch.cu_seqlens.tolist()
    size = batch.tokens.shape[1]
    assert batch.labels.shape == batch.per_token["half"].shape == batch.per_token["minus"].shape == (1, size)
    assert batch.per_token["half"].dtype == torch.float32 and batch.per_token["minus"].dtype == torch.int64
    assert batch.groups.shape == batch.per_document["number"].shape == (len(bounds) - 1,)
    assert batch.per_document["pair"].shape == (len(bounds) - 1, 2)
    shards, found = documents.shards, {}
    for segment, (start, stop) in enumerate(itertools.pairwise(bounds)):
        tokens, labels = batch.tokens[0, start:stop].tolist(), batch.labels[0, start:stop]
        half, minus = (batch.per_token[name][0, start:stop] for name in ("half", "minus"))
        number, pair = batch.per_document["number"][segment].item(), batch.per_document["pair"][segment].tolist()
        group = batch.groups[segment].item()
        assert start // seq_len == (stop - 1) // seq_len
        if group < 0:
            assert (group, number, pair) == (-1, 0, [0, 0]) and stop % seq_len == 0
            assert set(tokens) == {0} and not half.any() and not minus.any() and (labels == -100).all()
            continue
        assert tokens == shards.document(number).tolist() and pair == [number, number + 0.25]
        assert labels.tolist() == [*tokens[1:], -100]
        assert half[:-1].tolist() == [token / 2 for token in tokens[1:]] and not half[-1]
        assert (minus == -labels)[:-1].all() and not minus[-1]
        found.setdefault(group, []).append((number, start // seq_len))
    assert list(found) == list(range(len(found)))
    assert all(len({sequence for _, sequence in held}) == 1 for held in found.values()), "in one sequence"
    return [[number for number, _ in held] for held in found.values()]


@settings(max_examples=60, deadline=None)
@given(groups_of_lengths, st.integers(0, 12), st.integers(1, 3), st.sampled_from([1, 2, 1024]))
def test_no_group_is_split_and_every_one_is_used_once_an_epoch(numbered, groups, room, files, window):
    documents = _documents(numbered, groups, files)
    seq_len = max(sum(group) for group in groups) + room
    given_groups = [list(range(*pair)) for pair in itertools.pairwise(documents.bounds.tolist())]
    numbers = {tuple(group): number for number, group in enumerate(given_groups)}
    uses = np.zeros(len(groups), np.int64)
    total = sum(map(sum, groups))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_fit, "WINDOW_SEQUENCES", window)
        batches = _batches(documents, seq_len, sequences=1)
        while uses.min() < 3:
            for group in _check(next(batches), documents, seq_len):
                uses[numbers[tuple(group)]] += 1
            assert uses.max() - uses.min() <= 1 + seq_len // total  # unless a sequence holds epochs


@settings(max_examples=25, deadline=None)
@given(groups_of_lengths, st.integers(0, 4), st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3))
def test_resumed_at_other_ranks_gives_the_same_batches(numbered, groups, steps, lives):
    documents = _documents(numbered, groups)
    whole = _batches(documents)
    state = whole.state_dict()
    for ranks in lives:
        loaders = [Prefetched(_batches(documents), rank=rank, ranks=ranks) for rank in range(ranks)]
        for loader in loaders:
            loader.load_state_dict(json.loads(json.dumps(state)))
        for _ in range(steps):
            expected, shares = next(whole), [next(loader) for loader in loaders]
            for name in ("tokens", "labels"):
                assert torch.equal(torch.cat([getattr(share, name) for share in shares], 1), getattr(expected, name))
            for name, values in expected.per_token.items():
                assert torch.equal(torch.cat([share.per_token[name] for share in shares], 1), values)
            for name, values in expected.per_document.items():
                assert torch.equal(torch.cat([share.per_document[name] for share in shares]), values)
            assert torch.equal(_renumbered([share.groups for share in shares]), expected.groups)
        state = loaders[0].state_dict()
        for loader in loaders:
            next(loader)  # in vain
            loader.close()


def _renumbered(groups):
    """The groups of several shares as those of one batch."""
    before, result = 0, []
    for part in groups:
        result.append(torch.where(part < 0, part, part + before))
        before += int(part.max()) + 1
    return torch.cat(result)


def test_what_is_not_learned_has_no_label_and_keeps_its_values():
    tokens = np.arange(1, 8, dtype=np.int32)
    ends = np.array([4, 7])
    learned = np.packbits([0, 0, 1, 1, 0, 1, 1], bitorder="little")
    file = TokenFile(tokens, np.array([0, 4]), np.diff(ends, prepend=0), learned)
    shards = TokenShards.over([file], Path("nowhere"), "hidden", vocab_size=8)
    documents = GroupedDocuments(shards, np.array([0, 2]), per_token={"value": tokens * 10})
    batch = next(_batches(documents, seq_len=9, sequences=1))
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7, 0, 0]]
    assert batch.labels.tolist() == [[-100, 3, 4, -100, 6, 7, -100, -100, -100]]
    assert batch.per_token["value"].tolist() == [[20, 30, 40, 0, 60, 70, 0, 0, 0]]
    assert batch.groups.tolist() == [0, 0, -1] and batch.cu_seqlens.tolist() == [0, 4, 7, 9]


def test_traces_name_the_documents_in_their_order(numbered):
    documents = _documents(numbered, [[3, 4], [5], [2, 2, 2]])
    batches = _batches(documents)
    batch, traced = batches.batch(1), batches.trace(1)
    numbers = batch.per_document["number"][batch.groups >= 0].tolist()
    assert [segment.id for segment in traced] == [f"#{number}" for number in numbers]
    assert [(s.offset, s.length) for s in traced] == [(0, int(documents.shards.lengths[n])) for n in numbers]


def test_plans_in_files_are_those_in_memory(numbered, tmp_path):
    documents = _documents(numbered, [[3, 4], [5], [2, 2, 2]] * 30)
    memory, disk = _batches(documents), _batches(documents, plans=tmp_path)
    for number in (7, 0):
        assert torch.equal(memory.batch(number).tokens, disk.batch(number).tokens)
    assert list(tmp_path.glob("*/epoch-*"))


def test_other_groups_or_values_refuse_to_resume(numbered):
    documents = _documents(numbered, [[3, 4], [5], [2, 2, 2]])
    state = _batches(documents).state_dict()
    _batches(_documents(numbered, [[3, 4], [5], [2, 2, 2]])).load_state_dict(state)
    half, number = documents.per_token["half"], documents.per_document["number"]
    others = [
        replace(documents, bounds=np.array([0, 1, 3, 6])),
        replace(documents, per_token={"half": half}),
        replace(documents, per_token={**documents.per_token, "half": half + 1}),
        replace(documents, per_token={**documents.per_token, "half": half.astype(np.float64)}),
        replace(documents, per_document={**documents.per_document, "number": number[::-1]}),
    ]
    for other in others:
        with pytest.raises(UserError, match="cannot be resumed on other data"):
            _batches(other).load_state_dict(state)


def test_a_group_longer_than_a_sequence_is_refused(numbered):
    documents = _documents(numbered, [[3, 4], [1, 2, 3, 1, 1, 1], [9]])
    _batches(documents, seq_len=9)
    message = (
        r"each must fit in one sequence of 8 tokens; 2 of 3 do not\. The longest has 9 tokens \(documents #2, #3, #4, "
        r"#5 and more\)\. Make seq_len at least 9"
    )
    with pytest.raises(UserError, match=message):
        _batches(documents, seq_len=8)


@pytest.mark.parametrize("bounds", [[0], [0, 2], [1, 3], [0, 2, 2, 3], [0, 2, 1, 3], [[0, 3]], []])
def test_bounds_that_are_none_are_refused(numbered, bounds):
    with pytest.raises(UserError, match=r"begin with 0, rise, and end with the number of documents \(3\); given"):
        GroupedDocuments(numbered([2, 3, 4]), np.array(bounds))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"per_token": {"x": np.zeros(8)}}, r"one array \[9\], as many as .* tokens; 'x' is \[8\]"),
        ({"per_token": {"x": np.zeros((1, 9))}}, r"'x' is \[1, 9\]"),
        ({"per_document": {"x": np.zeros(2)}}, r"array \[3, ...\], one row for each document; 'x' is \[2\]"),
        ({"per_document": {"x": np.zeros(())}}, r"'x' is \[\]"),
        ({"per_document": {"x": np.array(["a", "b", "c"])}}, r"The values 'x' are <U1; give whole numbers"),
    ],
)
def test_values_of_another_shape_are_refused(numbered, values, message):
    with pytest.raises(UserError, match=message):
        GroupedDocuments(numbered([2, 3, 4]), np.array([0, 2, 3]), **values)


def test_documents_without_groups_have_no_values(numbered):
    from leyden.data import PackedBatches

    batch = next(PackedBatches(numbered([5, 6]), seq_len=4, batch_tokens=8, seed=0))
    assert (batch.per_token, batch.per_document, batch.groups) == ({}, {}, None)
