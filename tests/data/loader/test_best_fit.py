"""Best-fit packing: every token as often as its epoch says, no document cut that fits, next to no padding."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data import PackedBatches
from leyden.data.loader import best_fit, plan
from leyden.data.loader.best_fit import best_fit as place
from leyden.data.loader.plan import BestFit

windows = st.sampled_from([1, 2, 5, 1024])
"""Of sequences: an epoch has many, or is one."""
lengths_of_documents = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def _segments(batch):
    """(tokens, labels) of each segment."""
    bounds = batch.cu_seqlens.tolist()
    tokens, labels = batch.tokens[0].tolist(), batch.labels[0].tolist()
    return [(tokens[a:b], labels[a:b]) for a, b in itertools.pairwise(bounds)]


def _make(shards, seq_len=16, sequences=3, seed=5, **settings):
    return PackedBatches(
        shards, seq_len=seq_len, batch_tokens=seq_len * sequences, seed=seed, packing="best_fit", **settings
    )


@settings(max_examples=60, deadline=None)
@given(lengths_of_documents, st.integers(1, 20), st.integers(1, 3), st.sampled_from([0.0, 0.01, 1.0]), windows)
def test_every_token_is_used_once_an_epoch(numbered, lengths, seq_len, files, max_padding, window):
    """After every sequence, no token has been used twice more often than another, unless a sequence holds epochs."""
    shards = numbered(lengths, files=files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_fit, "WINDOW_SEQUENCES", window)
        _check_uses(shards, lengths, seq_len, BestFit(shards, seq_len=seq_len, seed=1, max_padding=max_padding))


def _check_uses(shards, lengths, seq_len, stream):
    total = sum(lengths)
    uses = np.zeros(total + 1, np.int64)
    taken = 0
    for first in range(3 * total // seq_len + 3):
        held = stream.pieces(first, 1)
        inside = int(held.pieces["length"].sum())
        assert 0 < inside <= seq_len
        taken += inside
        for document, offset, length in held.pieces.tolist():
            start = int(shards.starts[document]) + offset
            assert 0 <= offset < offset + length <= lengths[document]
            uses[start : start + length] += 1
        assert stream.tokens_before(first + 1) == taken == uses.sum()
        assert uses[:total].max() - uses[:total].min() <= 1 + seq_len // total
    assert stream.tokens_before(0) == 0


@settings(max_examples=60, deadline=None)
@given(lengths_of_documents, st.integers(1, 50), st.sampled_from([0.0, 0.01, 0.2]), windows)
def test_padding_is_bounded_whatever_the_lengths(numbered, lengths, seq_len, max_padding, size):
    shards = numbered(lengths)
    common = {"seq_len": seq_len, "seed": 0, "max_padding": max_padding}
    pending = np.empty(0, best_fit.PIECE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_fit, "WINDOW_SEQUENCES", size)
        for epoch in range(4):
            for window in best_fit.plan_epoch(shards, epoch=epoch, pending=pending, **common):
                pending = window.pending
                room = len(window.counts) * seq_len
                assert room - window.pieces["length"].sum() <= max_padding * room
                assert window.counts.sum() == len(window.pieces)
                assert pending["length"].sum() <= seq_len


@settings(max_examples=60, deadline=None)
@given(lengths_of_documents, st.integers(1, 50))
def test_no_document_that_fits_is_cut_unless_padding_forces_it(numbered, lengths, seq_len):
    shards = numbered(lengths)
    stream = BestFit(shards, seq_len=seq_len, seed=0, max_padding=1.0)
    held = stream.pieces(0, 12)
    for document, offset, length in held.pieces.tolist():
        assert length == min(seq_len, lengths[document] - offset) and offset % seq_len == 0


def test_when_padding_forces_it_few_are_cut(numbered):
    """Documents of 0.6 of a sequence: two do not fit, so 40 % would be padding; two in five are cut instead."""
    shards = numbered([60] * 500)
    batch = _make(shards, seq_len=100, sequences=290).batch(0)
    padding = int((batch.tokens == 0).sum())
    assert padding <= 290
    whole = sum(len(tokens) == 60 for tokens, _ in _segments(batch) if tokens[0])
    assert whole >= 250
    uncut = _make(shards, seq_len=100, sequences=400, max_padding=1.0).batch(0)
    assert {len(tokens) for tokens, _ in _segments(uncut) if tokens[0]} == {60}


def test_padding_and_cuts_on_a_corpus_like_the_web(numbered):
    generator = np.random.default_rng(0)
    lengths = np.maximum(2, generator.lognormal(6, 1.2, 20_000)).astype(int)
    shards = numbered(lengths, fingerprint="web")
    for seq_len in (512, 2048, 8192):
        stream = BestFit(shards, seq_len=seq_len, seed=0)
        tokens = stream.tokens_before(1_000)
        assert 1 - tokens / (1_000 * seq_len) < 0.002
        pieces = stream.pieces(0, 1_000).pieces
        short = shards.lengths[pieces["document"]] <= seq_len
        assert np.array_equal(pieces["length"][short], shards.lengths[pieces["document"]][short])


@settings(max_examples=40, deadline=None)
@given(lengths_of_documents, st.integers(1, 20), st.integers(1, 4), st.integers(0, 6))
def test_labels_positions_and_segments(numbered, lengths, seq_len, sequences, number):
    """Every token is the number before the next one's: so labels need no second look at the shards."""
    shards = numbered(lengths)
    last_tokens = set((shards.starts + shards.lengths).tolist())
    batches = _make(shards, seq_len=seq_len, sequences=sequences)
    batch = batches.batch(number)
    assert batch.tokens.shape == batch.labels.shape == batch.positions.shape == (1, seq_len * sequences)
    bounds = batch.cu_seqlens.tolist()
    assert set(range(0, seq_len * sequences + 1, seq_len)) <= set(bounds) and bounds == sorted(set(bounds))
    assert batch.positions[0].tolist() == [n for a, b in itertools.pairwise(bounds) for n in range(b - a)]
    traced = iter(batches.trace(number))
    for tokens, labels in _segments(batch):
        if tokens[0] == 0:
            assert set(tokens) == {0} and set(labels) == {-100}
            continue
        assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))
        assert labels == [-100 if token in last_tokens else token + 1 for token in tokens]
        segment = next(traced)
        document = int(segment.id[1:])
        assert tokens[0] == shards.starts[document] + segment.offset + 1 and segment.length == len(tokens)
    assert next(traced, None) is None


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(30, 60), st.integers(0, 60))
def test_best_fit_is_best_fit(lengths, capacity, used):
    """Against the textbook: look at every bin, take the one with the least room that suffices."""
    used = min(used, capacity)
    bins = place(np.array(lengths, np.int64), capacity, used)
    rooms = [capacity - used] if used else []
    expected_rooms = list(rooms)
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in expected_rooms if room >= length]
        room = min(fitting) if fitting else capacity
        if fitting:
            expected_rooms.remove(room)
        expected_rooms.append(room - length)
    got = np.zeros(max([len(rooms) - 1, *bins.tolist()]) + 1, np.int64)
    np.add.at(got, bins, lengths)
    if used:
        got[0] += used
    assert sorted(capacity - got) == sorted(expected_rooms)


def test_plans_in_files_are_those_in_memory(numbered, tmp_path, monkeypatch):
    shards = numbered(np.random.default_rng(1).integers(1, 50, 300).tolist())
    monkeypatch.setattr(best_fit, "WINDOW_SEQUENCES", 20)
    memory = _make(shards)
    disk = _make(shards, plans=tmp_path)
    assert disk.fingerprint == memory.fingerprint
    for number in (200, 0, 7, 350):
        assert torch.equal(memory.batch(number).tokens, disk.batch(number).tokens)
    folders = sorted(tmp_path.glob("*/*"))
    assert len(folders) >= 3 and all(folder.name.startswith("epoch-") for folder in folders)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "plan_epoch", lambda *_, **__: pytest.fail("a plan in files is not made again"))
        again = _make(shards, plans=tmp_path)
        for number in (0, 350):
            assert torch.equal(memory.batch(number).tokens, again.batch(number).tokens)
    before = {path: path.read_bytes() for path in folders[0].iterdir()}
    for path, content in before.items():
        for damaged in (b"", content[:-1] + bytes([content[-1] ^ 1]), content[:-9]):
            path.write_bytes(damaged)
            assert torch.equal(memory.batch(0).tokens, _make(shards, plans=tmp_path).batch(0).tokens)
            assert {path: path.read_bytes() for path in folders[0].iterdir()} == before
    assert sorted(tmp_path.glob("*/*")) == folders  # nothing is left beside them


def test_two_processes_may_plan_at_once(numbered, tmp_path, monkeypatch):
    """The second to finish finds the folder there, and uses it."""
    shards = numbered([3, 5, 7, 11, 13] * 9)
    first, second = _make(shards, plans=tmp_path), _make(shards, plans=tmp_path)
    whole = BestFit._windows

    def late(self, epoch):
        yield from whole(self, epoch)
        if self is second._stream:
            first.batch(0)

    monkeypatch.setattr(BestFit, "_windows", late)
    batch = second.batch(0)
    assert torch.equal(batch.tokens, first.batch(0).tokens)
    assert [path.name for path in tmp_path.glob("*/*")] == ["epoch-000000"]


def test_one_document_shorter_than_a_sequence(numbered):
    """Epoch after epoch goes into one sequence, and the last of each sequence is cut."""
    batch = _make(numbered([7]), seq_len=50, sequences=2).batch(0)
    assert (batch.tokens == 0).sum() <= 1
    assert [len(tokens) for tokens, _ in _segments(batch)][:7] == [7] * 7


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_shares_make_up_the_batch(numbered, ranks):
    batches = _make(numbered(list(range(1, 40))), sequences=6)
    batch = batches.batch(4)
    shares = [batches.share(4, rank, ranks) for rank in range(ranks)]
    assert torch.equal(batch.tokens, torch.cat([share.tokens for share in shares], 1))
    assert torch.equal(batch.labels, torch.cat([share.labels for share in shares], 1))
    bounds, shift = [0], 0
    for share in shares:
        bounds += (share.cu_seqlens[1:] + shift).tolist()
        shift = bounds[-1]
    assert batch.cu_seqlens.tolist() == bounds


def test_more_ranks_than_sequences(numbered):
    with pytest.raises(UserError, match=r"rank 0 of 7 has no share of a batch of 6 sequences; .*at least 112"):
        _make(numbered([5]), sequences=6).share(0, 0, 7)


def test_other_settings_refuse_to_resume(numbered):
    shards = numbered([5, 6, 7])
    state = _make(shards).state_dict()
    _make(shards).load_state_dict(state)
    for other in (
        _make(shards, max_padding=0.5),
        _make(shards, seed=6),
        PackedBatches(shards, seq_len=16, batch_tokens=48, seed=5),
        _make(numbered([5, 6, 8])),
        _make(shards.of_length(5, None)),
    ):
        with pytest.raises(UserError, match="cannot be resumed on other data"):
            other.load_state_dict(state)
