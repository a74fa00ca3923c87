"""Shards hold the documents' tokens, come whole or not at all, and damage is noticed."""

import json
import shutil

import numpy as np
import pytest
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from leyden.core.errors import UserError
from leyden.data import Document, Message, TokenShards, write_shards
from leyden.data import shards as shards_module
from leyden.data.tokenise import TextLayout
from leyden.tokenizer import Tokenizer
from leyden.tokenizer.bpe import byte_spelling
from leyden.tokenizer.directory import TokenizerFiles


def test_documents_come_back(tokenizer, documents, shards):
    assert shards.num_documents == len(documents)
    assert shards.text_bytes == sum(len(document.text) for document in documents)
    assert shards.num_tokens == shards.text_bytes + 2 * len(documents)
    for index, document in enumerate(documents):
        tokens = shards.document(index).tolist()
        assert tokens == [tokenizer.bos_id, *tokenizer.encode(document.text), tokenizer.eod_id]
    assert shards.tokenizer_fingerprint == tokenizer.fingerprint
    assert shards.vocab_size == tokenizer.vocab_size
    shards.verify()


def test_the_fingerprint_tells_other_tokens(tokenizer, documents, shards, tmp_path):
    again = write_shards(iter(documents), tokenizer, tmp_path / "again", shard_tokens=200)
    assert (again.fingerprint == shards.fingerprint) == ("00001.tokens" in {p.name for p in shards.directory.iterdir()})
    other = write_shards(documents[1:], tokenizer, tmp_path / "again", shard_tokens=200)
    assert other.fingerprint != again.fingerprint
    assert TokenShards.open(tmp_path / "again").fingerprint == other.fingerprint


def test_a_document_on_which_the_tokenizer_gives_up_costs_no_other(documents, tmp_path, caplog):
    backend = Backend(models.BPE({character: index for index, character in enumerate(byte_spelling())}, []))
    split = pre_tokenizers.Split(Regex("(a+)+$"), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    files = TokenizerFiles(backend.to_str(), {"eos_token": "</s>"}, (), None)
    bad = Document("the bad one", "a" * 40 + "!", "")
    shards = write_shards([documents[0], bad, *documents[1:]], Tokenizer(backend, files), tmp_path / "shards")
    assert shards.num_documents == len(documents)
    assert "the bad one is left out" in caplog.text


def test_nothing_half_written_is_left(tokenizer, documents, tmp_path):
    target = tmp_path / "shards"
    with pytest.raises(UserError, match="lone surrogate"):
        write_shards([*documents, Document("x", "\ud800", "")], tokenizer, target)
    with pytest.raises(UserError, match="no documents"):
        write_shards([], tokenizer, target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tokens", "ends"])
@pytest.mark.parametrize("damage", ["shorter", "longer", "missing", "first", "last", "empty"])
def test_damage_is_a_user_error(shards, tmp_path, name, damage):
    copy = tmp_path / "copy"
    shutil.copytree(shards.directory, copy)
    path = sorted(copy.glob(f"*.{name}"))[-1]
    data = bytearray(path.read_bytes())
    if damage in ("first", "last"):
        data[0 if damage == "first" else -1] ^= 1
    changed = {"shorter": data[:-1], "longer": data + b"\0", "empty": b""}.get(damage, data)
    path.unlink() if damage == "missing" else path.write_bytes(changed)
    with pytest.raises(UserError, match=rf"\.{name} is damaged: .*build the token shards again"):
        TokenShards.open(copy)


def test_damage_in_the_middle_is_found_by_verify(tokenizer, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "_BLOCK_BYTES", 64)
    path = write_shards(documents, tokenizer, tmp_path / "shards").directory / "00000.tokens"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    opened = TokenShards.open(tmp_path / "shards")
    with pytest.raises(UserError, match="damaged: bytes from"):
        opened.verify()


def test_damage_is_found_when_it_is_first_read_and_nowhere_else(tokenizer, documents, tmp_path, monkeypatch):
    """One bit in each block in turn: exactly the documents in it cannot be read, alone, with others, or in a choice."""
    monkeypatch.setattr(shards_module, "_BLOCK_BYTES", 64)
    opened = write_shards(documents, tokenizer, tmp_path / "shards", shard_tokens=300)
    whole = [opened.document(index) for index in range(opened.num_documents)]
    generator, found = np.random.default_rng(0), 0
    for path in sorted(opened.directory.glob("*.tokens")):
        content = path.read_bytes()
        for block in range(1, len(content) // 64 - 1, 3):
            place = block * 64 + int(generator.integers(64))
            flipped = bytes([content[place] ^ 1 << int(generator.integers(8))])
            path.write_bytes(content[:place] + flipped + content[place + 1 :])
            damaged = TokenShards.open(opened.directory)
            some = damaged.select(np.arange(len(whole)) % 3 > 0, "two thirds")
            for shards in (damaged, some):
                for index in generator.permutation(shards.num_documents).tolist():
                    number = int(shards.rows[index])
                    base = opened._offsets[int(path.stem)]
                    begin, end = (4 * (opened.starts[number] + n - base) for n in (0, opened.lengths[number]))
                    if end >= 0 and begin < (block + 1) * 64 and end > block * 64 and begin < len(content):
                        found += 1
                        with pytest.raises(UserError, match=rf"{path.name} is damaged: bytes from {block * 64} on"):
                            shards.document(index)
                        with pytest.raises(UserError, match="is damaged"):
                            shards.gather(shards.starts, shards.lengths)
                    else:
                        assert (shards.document(index) == whole[number]).all()
        path.write_bytes(content)
    assert found > 15


def test_masks_and_names_of_documents_are_checked_when_read(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "_BLOCK_BYTES", 16)
    turns = (Message("user", "ask " * 20), Message("assistant", "answer " * 20))
    talks = [Document(f"talk {number}", "", "memory", turns) for number in range(8)]
    opened = write_shards(talks, tokenizer, tmp_path / "shards", layout=TextLayout(learn="answers"))
    for suffix in ("learned", "documents"):
        path = opened.directory / f"00000.{suffix}"
        content = path.read_bytes()
        place = len(content) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        damaged = TokenShards.open(opened.directory)
        with pytest.raises(UserError, match=rf"00000\.{suffix} is damaged"):
            damaged.learned(damaged.starts, damaged.lengths) if suffix == "learned" else damaged.id(3)
        path.write_bytes(content)
        assert TokenShards.open(opened.directory).id(3) == "talk 3"


def test_shards_of_older_versions_have_large_blocks(tokenizer, documents, tmp_path):
    opened = write_shards(documents, tokenizer, tmp_path / "shards")
    metadata = json.loads((opened.directory / "metadata.json").read_text())
    assert metadata.pop("block_bytes") == 256 << 10
    (opened.directory / "metadata.json").write_text(json.dumps(metadata))
    older = TokenShards.open(opened.directory)
    older.verify()
    assert (older.document(7) == opened.document(7)).all()


@pytest.mark.parametrize("metadata", [None, "", "{", "[]", "{}", '{"format": "other"}', "\xff"])
def test_broken_metadata_is_a_user_error(shards, tmp_path, metadata):
    if metadata is not None:
        (tmp_path / "metadata.json").write_text(metadata, encoding="latin-1")
    with pytest.raises(UserError, match=r"metadata\.json"):
        TokenShards.open(tmp_path)
