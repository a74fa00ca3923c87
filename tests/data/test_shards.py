"""Shards hold the documents' tokens, come whole or not at all, and damage is noticed."""

import shutil

import pytest

from leyden.core.errors import UserError
from leyden.data import Document, TokenShards, write_shards
from leyden.data import shards as shards_module


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


@pytest.mark.parametrize("metadata", [None, "", "{", "[]", "{}", '{"format": "other"}', "\xff"])
def test_broken_metadata_is_a_user_error(shards, tmp_path, metadata):
    if metadata is not None:
        (tmp_path / "metadata.json").write_text(metadata, encoding="latin-1")
    with pytest.raises(UserError, match=r"metadata\.json"):
        TokenShards.open(tmp_path)
