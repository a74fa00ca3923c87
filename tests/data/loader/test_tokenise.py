"""Tokenising Parquet files in parallel, resumed by the file; masks and ids beside the tokens."""

import numpy as np
import pytest

from leyden.core.errors import UserError
from leyden.data import Document, Documents, Message, PackedBatches, TokenShards, write_shards
from leyden.data import tokenise as tokenise_module
from leyden.data.engine import DataEngine
from leyden.data.parquet import DocumentsWriter
from leyden.data.templates import lay_out
from leyden.data.tokenise import TextLayout, tokenise_files

ANSWERS = TextLayout(style="light", learn="answers")


@pytest.fixture
def nested():
    turns = (Message("user", "two and two?"), Message("assistant", "four"), Message("user", "sure?"))
    return [
        Document("plain", "hello world", "web"),
        Document("talk", "", "chat", messages=(*turns, Message("assistant", "quite sure"))),
        Document("question", "", "chat", messages=turns[:1]),
    ]


@pytest.fixture
def saved(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def _parquet(path, documents, dropped=()):
    batch = Documents.of(documents)
    with DocumentsWriter(path) as writer:
        writer.write(batch.drop([("bad" if d.id in dropped else None) for d in documents]))
    return path


def test_masks_say_what_is_learned(tokenizer, nested, tmp_path):
    shards = write_shards(nested, tokenizer, tmp_path / "shards", layout=ANSWERS)
    assert shards.has_masks
    for index, document in enumerate(nested):
        laid = lay_out(document, "light", "answers")
        tokens = shards.document(index)
        assert tokenizer.decode(tokens[1:-1]) == laid.text
        learned = shards.learned(shards.starts[index : index + 1], shards.lengths[index : index + 1])
        expected = [any(a <= place < b for a, b in laid.learned) for place in range(len(laid.text))]
        assert learned[1:-1].tolist() == expected  # the tokenizer's tokens are bytes
        assert learned[-1] == expected[-1]


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_labels_follow_the_masks(tokenizer, nested, tmp_path, packing):
    """Whatever the cuts: a label is the next token of its document, where that is learned."""
    shards = write_shards(nested * 3, tokenizer, tmp_path / "shards", layout=ANSWERS, shard_tokens=60)
    for seq_len in (7, 16, 200):
        batches = PackedBatches(shards, seq_len=seq_len, batch_tokens=5 * seq_len, seed=1, packing=packing)
        for number in range(4):
            batch, place = batches.batch(number), 0
            bounds = batch.cu_seqlens.tolist()
            ids = [shards.id(n) for n in range(shards.num_documents)]
            traced = iter(batches.trace(number))
            for start, end in zip(bounds, bounds[1:], strict=False):
                if packing == "best_fit" and not batch.tokens[0, start:end].any():
                    continue
                segment = next(traced)
                document = ids.index(segment.id)
                tokens = shards.document(document)
                learned = shards.learned(
                    shards.starts[document : document + 1], shards.lengths[document : document + 1]
                )
                following = [*np.where(learned, tokens, -100)[1:].tolist(), -100]
                assert batch.tokens[0, start:end].tolist() == tokens[segment.offset :][: end - start].tolist()
                assert batch.labels[0, start:end].tolist() == following[segment.offset :][: end - start]
                place += end - start
            assert place >= 0.6 * 5 * seq_len


def test_ids_and_sources_are_kept(tokenizer, documents, nested, tmp_path):
    shards = write_shards([*documents, *nested], tokenizer, tmp_path / "shards", shard_tokens=200)
    expected = [document.id for document in [*documents, *nested]]
    assert [shards.id(n) for n in range(shards.num_documents)] == expected
    assert [shards.source(n) for n in range(40, 43)] == ["web", "chat", "chat"]
    assert not shards.has_masks
    long = shards.of_length(30, None)
    assert [long.id(n) for n in range(long.num_documents)] == [
        id for id, length in zip(expected, shards.lengths.tolist(), strict=True) if length > 30
    ]
    with pytest.raises(IndexError):
        shards.id(43)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_files_are_tokenised_as_lists_are(saved, tokenizer, documents, nested, tmp_path, workers):
    everything = [*documents, *nested]
    parts = [everything[:15], everything[15:16], everything[16:]]
    paths = [_parquet(tmp_path / f"{n}.parquet", part, dropped={"d15", "d20"}) for n, part in enumerate(parts)]
    made = tokenise_files(paths, saved, tmp_path / "made", DataEngine(workers), ANSWERS)
    made.verify()
    kept = [document for document in everything if document.id not in {"d15", "d20"}]
    whole = write_shards(kept, tokenizer, tmp_path / "whole", layout=ANSWERS)
    assert made.num_documents == whole.num_documents == 41
    for index in range(41):
        assert made.id(index) == whole.id(index)
        assert np.array_equal(made.document(index), whole.document(index))
    assert np.array_equal(made.learned(made.starts, made.lengths), whole.learned(whole.starts, whole.lengths))
    assert made.text_bytes == whole.text_bytes
    assert tokenise_files(paths, saved, tmp_path / "again", DataEngine(1), ANSWERS).fingerprint == made.fingerprint


def test_an_interrupted_call_goes_on_by_the_file(saved, documents, tmp_path, monkeypatch):
    paths = [_parquet(tmp_path / f"{n}.parquet", documents[10 * n : 10 * n + 10]) for n in range(4)]
    whole = tokenise_module._write_shard
    made = []

    def counted(directory, *arguments, **settings):
        made.append(directory.name)
        if len(made) == 3:
            raise KeyboardInterrupt
        return whole(directory, *arguments, **settings)

    monkeypatch.setattr(tokenise_module, "_write_shard", counted)
    with pytest.raises(KeyboardInterrupt):
        tokenise_files(paths, saved, tmp_path / "made", DataEngine(1))
    with pytest.raises(UserError, match="holds no token shards"):
        TokenShards.open(tmp_path / "made")
    fingerprint = tokenise_files(paths, saved, tmp_path / "made", DataEngine(1)).fingerprint
    assert made == [".0.part", ".1.part", ".2.part", ".2.part", ".3.part"]
    assert tokenise_files(paths, saved, tmp_path / "made", DataEngine(1)).fingerprint == fingerprint and len(made) == 5
    _parquet(paths[1], documents[:3])  # what changed is made again, and nothing else
    changed = tokenise_files(paths, saved, tmp_path / "made", DataEngine(1))
    assert made[5:] == [".1.part"] and changed.fingerprint != fingerprint and changed.num_documents == 33
    tokenise_files(paths, saved, tmp_path / "made", DataEngine(1), ANSWERS)
    assert len(made) == 10  # another layout is another result, even where it should not matter


def test_no_documents(saved, documents, tmp_path):
    path = _parquet(tmp_path / "x.parquet", documents[:2], dropped={"d0", "d1"})
    with pytest.raises(UserError, match="no documents"):
        tokenise_files([path], saved, tmp_path / "made", DataEngine(1))
