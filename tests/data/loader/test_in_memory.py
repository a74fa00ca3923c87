"""Documents in memory give the bits that the same documents in files give, whatever makes batches of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data import (
    Document,
    GroupedBatches,
    GroupedDocuments,
    Message,
    MixedBatches,
    MixtureSchedule,
    PackedBatches,
    shards_in_memory,
    write_shards,
)
from leyden.data.tokenise import TextLayout


def copy_of(shards):
    """The same documents, in memory."""
    numbers, ones = range(shards.num_documents), np.ones(1, np.int64)
    learned = [shards.learned(shards.starts[d : d + 1], ones * shards.lengths[d]) for d in numbers]
    return shards_in_memory(
        [shards.document(d).tolist() for d in numbers],
        vocab_size=shards.vocab_size,
        learned=learned if shards.has_masks else None,
        ids=[shards.id(d) for d in numbers],
        sources=[shards.source(d) for d in numbers],
    )


@pytest.fixture(scope="module")
def dialogues(tokenizer, tmp_path_factory):
    """Documents of which the answers alone are learned."""
    spoken = [
        Document(f"c{n}", "", "chats", messages=(Message("user", "q" * (n + 1)), Message("assistant", "a" * (9 - n))))
        for n in range(9)
    ]
    directory = tmp_path_factory.mktemp("dialogues") / "shards"
    return write_shards(spoken, tokenizer, directory, layout=TextLayout(style="plain", learn="answers"))


def assert_same(one, other, batches=4):
    for number in range(batches):
        here, there = one.batch(number), other.batch(number)
        for name in ("tokens", "labels", "cu_seqlens", "groups"):
            mine, theirs = getattr(here, name), getattr(there, name)
            assert mine is theirs is None or (mine.dtype == theirs.dtype and torch.equal(mine, theirs)), name
        assert one.trace(number) == other.trace(number)
        assert here.per_token.keys() == there.per_token.keys()
        assert all(torch.equal(here.per_token[name], there.per_token[name]) for name in here.per_token)


@settings(max_examples=20, deadline=None)
@given(seq_len=st.integers(2, 90), sequences=st.integers(1, 4), seed=st.integers(0, 99), data=st.data())
def test_packed_batches_have_the_bits_of_files(shards, dialogues, seq_len, sequences, seed, data):
    packing = data.draw(st.sampled_from(["concatenate", "best_fit"]))
    for on_disk in (shards, dialogues):
        chosen = np.array(data.draw(st.lists(st.booleans(), min_size=9, max_size=9)))
        mask = np.resize(chosen, on_disk.num_documents) | (np.arange(on_disk.num_documents) < 1)
        size = {"seq_len": seq_len, "batch_tokens": seq_len * sequences, "seed": seed}
        for one, other in (
            (on_disk, copy_of(on_disk)),
            (on_disk.select(mask, "some"), copy_of(on_disk.select(mask, "some"))),
        ):
            assert one.has_masks == other.has_masks
            assert_same(PackedBatches(one, packing=packing, **size), PackedBatches(other, packing=packing, **size))


def test_mixtures_and_groups_have_the_bits_of_files(shards, dialogues):
    mixture = MixtureSchedule.parse({"point": [{"weights": {"a": 1, "b": 2}}]}, "test").timed(1000)
    size = {"seq_len": 64, "batch_tokens": 256, "seed": 3}
    both = {"a": shards, "b": dialogues}
    assert_same(
        MixedBatches(both, mixture, **size), MixedBatches({k: copy_of(v) for k, v in both.items()}, mixture, **size)
    )
    bounds = np.array([0, *range(1, shards.num_documents, 2), shards.num_documents])
    values = {"advantage": np.arange(shards.num_tokens, dtype=np.float32)}
    grouped = [GroupedDocuments(each, bounds, per_token=values) for each in (shards, copy_of(shards))]
    size |= {"seq_len": 128}
    assert_same(*(GroupedBatches(each, **size) for each in grouped))


def test_what_is_known_of_documents_in_memory():
    shards = shards_in_memory([[1, 2, 3], [], np.array([4, 5], np.int16)], vocab_size=6)
    assert [shards.document(number).tolist() for number in range(shards.num_documents)] == [[1, 2, 3], [4, 5]]
    assert (shards.num_tokens, shards.id(1), shards.source(1)) == (5, "#2", "")
    shards.verify()
    same = shards_in_memory([[1, 2, 3], [], [4, 5]], vocab_size=6)
    others = [
        shards_in_memory([[1, 2], [3], [4, 5]], vocab_size=6),
        shards_in_memory([[1, 2, 3], [], [4, 4]], vocab_size=6),
        shards_in_memory([[1, 2, 3], [], [4, 5]], vocab_size=6, learned=[[True] * 3, [], [False, True]]),
        shards_in_memory([[1, 2, 3], [], [4, 5]], vocab_size=6, ids=["a", "b", "c"]),
    ]
    assert same.fingerprint == shards.fingerprint
    assert len({shards.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert others[3].id(1) == "c"


@pytest.mark.parametrize(
    ("documents", "more", "says"),
    [
        ([], {}, "no tokens in the documents"),
        ([[]], {}, "no tokens in the documents"),
        ([[1, 9]], {}, "whole numbers from 0 to 8; given: int64 .2. with values from 1 to 9"),
        ([[-1]], {}, "from -1 to -1"),
        ([[0.5]], {}, "float64"),
        ([[[1]]], {}, r"int64 \[1, 1\]"),
        ([[1], [2]], {"ids": ["a"]}, "2 documents were given, and ids of 1"),
        ([[1, 2]], {"learned": [[True]]}, "the lengths differ"),
    ],
)
def test_documents_that_cannot_be(documents, more, says):
    with pytest.raises(UserError, match=says):
        shards_in_memory(documents, vocab_size=9, **more)
