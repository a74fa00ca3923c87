"""Packing: each token once an epoch, the right targets, the right bounds, exact resume."""

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data import PackedBatches, write_shards

SEED = 3


def _stream(shards, num_tokens, seed=SEED):
    """The stream and its labels the slow way: documents in the order in which a batch of one token each meets them."""
    tokens, labels, starts = [], [], []
    bos = shards.document(0)[0]
    documents = {tuple(shards.document(index).tolist()) for index in range(shards.num_documents)}
    batches = PackedBatches(shards, seq_len=1, batch_tokens=1, seed=seed)
    document = []
    for batch in itertools.islice(batches, num_tokens):
        token = batch.tokens.item()
        if token == bos:
            assert not document or tuple(document) in documents
            document = []
        document.append(token)
        starts.append(token == bos)
        tokens.append(token)
    for position, token in enumerate(tokens[:-1]):
        labels.append(-100 if starts[position + 1] else tokens[position + 1])
        assert (labels[-1] == -100) == (token == shards.document(0)[-1])
    return tokens, labels, starts


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 5))
def test_batches_are_cuts_of_one_stream(shards, seq_len, num_sequences):
    batches = PackedBatches(shards, seq_len=seq_len, batch_tokens=seq_len * num_sequences, seed=SEED)
    size = seq_len * num_sequences
    count = 2 * shards.num_tokens // size + 2
    tokens, labels, starts = _reference(shards)
    for number, batch in enumerate(itertools.islice(batches, min(count, 40))):
        window = slice(number * size, (number + 1) * size)
        assert batch.tokens.shape == batch.labels.shape == (1, size)
        assert batch.tokens.dtype == batch.labels.dtype == torch.int64
        assert batch.tokens[0].tolist() == tokens[window]
        assert batch.labels[0].tolist() == labels[window]
        bounds = {place for place, start in enumerate(starts[window]) if start} | set(range(0, size + 1, seq_len))
        assert batch.cu_seqlens.tolist() == sorted(bounds)
        assert batch.cu_seqlens.dtype == torch.int32


_streams = {}


def _reference(shards):
    if shards.fingerprint not in _streams:
        _streams[shards.fingerprint] = _stream(shards, 3 * shards.num_tokens + 1000)
    return _streams[shards.fingerprint]


def test_each_epoch_uses_each_token_once_in_another_order(shards):
    tokens = _reference(shards)[0]
    bos, size = shards.document(0)[0], shards.num_tokens
    expected = sorted(tuple(shards.document(index).tolist()) for index in range(shards.num_documents))
    orders = []
    for epoch in range(3):
        documents = []
        for token in tokens[epoch * size : (epoch + 1) * size]:
            if token == bos:
                documents.append([])
            documents[-1].append(token)
        assert sorted(map(tuple, documents)) == expected
        orders.append(documents)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert _stream(shards, size, seed=SEED + 1)[0] != tokens[:size]
    assert _stream(shards, 10, seed=-1)[0][0] == bos


def test_a_batch_larger_than_the_corpus(shards):
    tokens, labels, _ = _reference(shards)
    size = int(2.5 * shards.num_tokens)
    batch = next(PackedBatches(shards, seq_len=size, batch_tokens=size, seed=SEED))
    assert batch.tokens[0].tolist() == tokens[:size]
    assert batch.labels[0].tolist() == labels[:size]


@pytest.mark.parametrize("taken", [0, 1, 7, 150])
def test_resumed_is_never_stopped(shards, taken):
    def make():
        return PackedBatches(shards, seq_len=16, batch_tokens=48, seed=SEED)

    whole = make()
    expected = [next(whole) for _ in range(taken + 5)][taken:]
    stopped = make()
    for _ in range(taken):
        next(stopped)
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = make()
    resumed.load_state_dict(state)
    assert resumed.epoch == stopped.epoch == taken * 48 / shards.num_tokens
    for batch, other in zip(expected, resumed, strict=False):
        assert torch.equal(batch.tokens, other.tokens)
        assert torch.equal(batch.labels, other.labels)
        assert torch.equal(batch.cu_seqlens, other.cu_seqlens)
    assert resumed.state_dict()["batch"] >= taken + 5


def test_a_rank_can_make_its_share_alone(shards):
    batches = PackedBatches(shards, seq_len=8, batch_tokens=32, seed=SEED)
    for number in (0, 5, 50):
        batch = batches.batch(number)
        shares = [batches.sequences(4 * number + rank * 2, 2) for rank in range(2)]
        assert torch.equal(batch.tokens, torch.cat([share.tokens for share in shares], 1))
        assert torch.equal(batch.labels, torch.cat([share.labels for share in shares], 1))
        bounds = torch.cat([shares[0].cu_seqlens, shares[1].cu_seqlens[1:] + 16])
        assert torch.equal(batch.cu_seqlens, bounds)


def test_other_data_or_settings_refuse_to_resume(shards, tokenizer, documents, tmp_path):
    base = {"seq_len": 8, "batch_tokens": 32, "seed": 1}
    state = PackedBatches(shards, **base).state_dict()
    for change in ({"seq_len": 16}, {"batch_tokens": 64}, {"seed": 2}):
        with pytest.raises(UserError, match="cannot be resumed on other data"):
            PackedBatches(shards, **{**base, **change}).load_state_dict(state)
    other = write_shards(documents[:-1], tokenizer, tmp_path / "other")
    with pytest.raises(UserError, match="cannot be resumed on other data"):
        PackedBatches(other, **base).load_state_dict(state)


@pytest.mark.parametrize(("seq_len", "batch_tokens"), [(0, 8), (8, 0), (8, 12), (16, 8), (-8, 8), (8, -8)])
def test_batches_hold_whole_sequences(shards, seq_len, batch_tokens):
    with pytest.raises(UserError, match="multiple of seq_len"):
        PackedBatches(shards, seq_len=seq_len, batch_tokens=batch_tokens, seed=0)


def test_the_order_is_that_of_splitmix64(shards):
    """Worked out in plain integers: a run must find the same order on every machine and with every numpy."""

    def mix(value):
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    epoch, indices = 1, range(shards.num_documents)
    order = sorted(indices, key=lambda index: mix((mix((mix(SEED) + epoch) % 2**64) + index) % 2**64))
    expected = [token for index in order for token in shards.document(index).tolist()]
    assert _reference(shards)[0][shards.num_tokens : 2 * shards.num_tokens] == expected
