"""Packed files: what is broken is reported with its place, and reading goes on at the next member."""

import gzip
import json
import os
import random
import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.data.readers.packed import FREE_BYTES, chunks
from leyden.data.readers.problem import Problem

PACK = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def _rows(*texts):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["header", "middle", "cut", "junk between"])
def test_reading_goes_on_at_the_next_member(tmp_path, read, suffix, damage):
    noise = random.Random(0).randbytes(4000).hex()
    members = [PACK[suffix](_rows(name, noise + name)) for name in ("one", "two", "three")]
    if damage == "header":
        members[1] = b"xxxx" + members[1][4:]
    elif damage == "middle":
        members[1] = members[1][:2000] + bytes(100) + members[1][2100:]
    elif damage == "cut":
        members[1] = members[1][:-200]
    else:
        members[1] = b"this is no member at all"
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"".join(members))
    documents, rejects = read(path)
    whole = ["one", f"{noise}one", "three", f"{noise}three"]
    assert [document.text for document in documents if document.text in whole] == whole
    kind = {".gz": "corrupt gzip", ".zst": "corrupt zstd"}[suffix]
    corrupt = [reject for reject in rejects if reject.reason == kind]
    assert [reject.place for reject in corrupt] == [f"compressed byte {len(members[0])}"]


@pytest.mark.parametrize("suffix", PACK)
def test_a_cut_end_is_reported(tmp_path, suffix):
    data = random.Random(0).randbytes(3000)
    packed = PACK[suffix](data)
    path = tmp_path / f"a{suffix}"
    for length in range(1, len(packed), 97):
        path.write_bytes(packed[:length])
        found = list(chunks(path))
        assert isinstance(found[-1], Problem)
        assert data.startswith(b"".join(part for part in found if isinstance(part, bytes)))
    path.write_bytes(packed)
    assert b"".join(chunks(path)) == data


@settings(max_examples=50, deadline=None)
@given(parts=st.lists(st.binary(max_size=200), max_size=5), suffix=st.sampled_from(list(PACK)))
def test_members_after_each_other(tmp_path_factory, parts, suffix):
    path = tmp_path_factory.mktemp("packed") / f"a{suffix}"
    path.write_bytes(b"".join(PACK[suffix](part) for part in parts))
    assert b"".join(chunks(path)) == b"".join(parts)


def test_zeros_after_gzip_are_no_damage(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"one") + bytes(100_000) + gzip.compress(b"two") + bytes(512))
    assert b"".join(chunks(path)) == b"onetwo"


@settings(max_examples=100, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(list(PACK)))
def test_any_damage_ends_and_is_reported_or_harmless(tmp_path_factory, data, suffix):
    noise = random.Random(1).randbytes(300)
    packed = bytearray(PACK[suffix](noise) * 3)
    start = data.draw(st.integers(0, len(packed) - 1))
    packed[start : start + data.draw(st.integers(0, 50))] = data.draw(st.binary(max_size=50))
    path = tmp_path_factory.mktemp("packed") / f"a{suffix}"
    path.write_bytes(packed)
    found = list(chunks(path))
    whole = b"".join(part for part in found if isinstance(part, bytes))
    assert whole.count(noise) >= 2 or any(isinstance(part, Problem) for part in found)


@pytest.mark.parametrize(("suffix", "megabytes", "held"), [(".gz", 50, 12), (".zst", 300, 12)])
def test_a_bomb_is_not_held(tmp_path, read, suffix, megabytes, held):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](bytes(megabytes << 20)))
    tracemalloc.start()
    documents, rejects = read(path, max_document_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert documents == []
    assert [reject.reason for reject in rejects] == ["too long"]
    assert peak < held << 20


@pytest.mark.parametrize("suffix", PACK)
def test_what_unpacks_to_far_more_than_text_does_is_read_no_further(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[suffix](bytes(9 << 20)) * 2)
    found = list(chunks(path))
    size = sum(len(chunk) for chunk in found if isinstance(chunk, bytes))
    if suffix == ".gz":  # which cannot
        assert size == 18 << 20
    else:
        assert size > FREE_BYTES
        assert isinstance(found[-1], Problem)
        assert found[-1].reason == "unpacks to too much"


@pytest.mark.parametrize("packed", [True, False])
def test_frames_of_zstd_that_share_a_dictionary(tmp_path, packed):
    parts = [f"line {n}: words that come again and again, {n * n}\n".encode() for n in range(2000)]
    dictionary = zstandard.train_dictionary(2000, parts)
    data = dictionary.as_bytes()
    frame = zstandard.ZstdCompressor().compress(data) if packed else data
    packer = zstandard.ZstdCompressor(dict_data=dictionary)
    head = b"\x5d\x2a\x4d\x18" + len(frame).to_bytes(4, "little") + frame
    (tmp_path / "a.zst").write_bytes(head + b"".join(map(packer.compress, parts)))
    assert b"".join(chunks(tmp_path / "a.zst")) == b"".join(parts)
    (tmp_path / "a.zst").write_bytes(b"".join(map(packer.compress, parts[:3])))
    assert all(isinstance(chunk, Problem) for chunk in chunks(tmp_path / "a.zst"))


def test_windows_of_zstd_long_are_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    data = os.urandom(1000)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.zst").write_bytes(packer.compress(data) + packer.flush())
    assert b"".join(chunks(tmp_path / "a.zst")) == data
