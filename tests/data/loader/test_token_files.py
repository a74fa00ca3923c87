"""Other toolkits' token files, each written by hand from its description."""

import gzip
import io
import struct

import numpy as np
import pytest

from leyden.core.errors import UserError
from leyden.data import PackedBatches
from leyden.data.token_files import open_token_files
from leyden.tokenizer import Tokenizer

DOCUMENTS = [[5, 6, 7, 0], [8, 0], [300, 9, 9, 9, 9, 0], [2, 0]]
FLAT = [token for document in DOCUMENTS for token in document]
ENDS = [4, 6, 12, 14]


def _pack(code, values):
    return struct.pack(f"<{len(values)}{code}", *values)


def _megatron(path, code="H", number=8, documents=(0, 1, 2, 3, 4), lengths=(4, 2, 6, 2), offsets=None, extra=b""):
    width = struct.calcsize(code)
    path.with_suffix(".bin").write_bytes(_pack(code, FLAT))
    offsets = offsets or [width * n for n in (0, *ENDS[:-1])]
    head = (
        b"MMIDIDX\0\0" + _pack("Q", [1]) + bytes([number]) + _pack("Q", [len(lengths)]) + _pack("Q", [len(documents)])
    )
    body = _pack("i", lengths) + _pack("q", offsets) + _pack("q", documents)
    path.with_suffix(".idx").write_bytes(head + body + extra)
    return path.with_suffix(".bin")


def _datatrove(path, code="H", loss=None):
    path = path.with_suffix(".ds")
    path.write_bytes(_pack(code, FLAT))
    path.with_name(path.name + ".index").write_bytes(_pack("Q", ENDS))
    path.with_name(path.name + ".metadata").write_text("some/tokenizer|2\n14\n14")
    if loss is not None:
        path.with_name(path.name + ".loss").write_bytes(bytes(loss))
    return path


def _olmo(path, code="H"):
    path = path.with_suffix(".npy")
    path.write_bytes(_pack(code, FLAT))
    rows = "".join(f"{a},{b},id{n},file.gz,{n}\n" for n, (a, b) in enumerate(zip([0, *ENDS], ENDS, strict=False)))
    path.with_suffix(".csv.gz").write_bytes(gzip.compress(rows.encode()))
    return path


def _numpy(path, dtype="<u2", values=FLAT):
    path = path.with_suffix(".npy")
    np.save(path, np.array(values, dtype))
    return path


def _nanogpt(path):
    path = path.with_suffix(".bin")
    path.write_bytes(_pack("H", FLAT))
    return path


def _llm_c(path, magic=20240520, code="H", tokens=None, first=False):
    path = path.with_suffix(".bin")
    tokens = tokens or ([0, *FLAT[:-1]] if first else FLAT)
    path.write_bytes(_pack("i", [magic, 1, len(tokens), *[0] * 253]) + _pack(code, tokens))
    return path


def _documents(shards):
    return [shards.document(n).tolist() for n in range(shards.num_documents)]


WRITERS = {
    "Megatron, uint16": _megatron,
    "Megatron, int32": lambda path: _megatron(path, "i", 4),
    "Megatron, int64": lambda path: _megatron(path, "q", 5),
    "Megatron, multimodal": lambda path: _megatron(path, extra=b"\0" * 4),
    "datatrove, 2 bytes": _datatrove,
    "datatrove, 4 bytes": lambda path: _datatrove(path, "I"),
    "OLMo, 2 bytes": _olmo,
    "OLMo, 4 bytes": lambda path: _olmo(path, "I"),
    "NumPy": _numpy,
    "NumPy, big-endian": lambda path: _numpy(path, ">i8"),
    "nanoGPT": _nanogpt,
    "llm.c": _llm_c,
    "llm.c, 4 bytes": lambda path: _llm_c(path, 20240801, "I"),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_documents_come_back_from_every_format(tmp_path, writer):
    path = writer(tmp_path / "part")
    shards = open_token_files(path, document_token=0)
    assert _documents(shards) == DOCUMENTS
    assert (shards.vocab_size, shards.num_tokens, shards.num_documents) == (301, 14, 4)
    shards.verify()
    assert open_token_files(tmp_path, document_token=0).fingerprint == shards.fingerprint
    batch = PackedBatches(shards, seq_len=14, batch_tokens=14, seed=0, packing="best_fit").batch(0)
    assert sorted(batch.tokens[0].tolist()) == sorted(FLAT)
    assert shards.id(2) == "#2" and shards.source(2) == ""


def test_documents_of_several_sequences(tmp_path):
    shards = open_token_files(_megatron(tmp_path / "x", documents=(0, 1, 3, 4)))
    assert _documents(shards) == [DOCUMENTS[0], DOCUMENTS[1] + DOCUMENTS[2], DOCUMENTS[3]]


def test_empty_documents_are_left_out(tmp_path):
    shards = open_token_files(_megatron(tmp_path / "x", documents=(0, 1, 1, 2, 4)))
    assert _documents(shards) == [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[2] + DOCUMENTS[3]]
    assert [shards.id(n) for n in range(3)] == ["#0", "#2", "#3"]


def test_documents_that_begin_with_their_token(tmp_path):
    shards = open_token_files(_llm_c(tmp_path / "x", first=True), document_token=0)
    assert _documents(shards) == [[0, 5, 6, 7], [0, 8], [0, 300, 9, 9, 9, 9], [0, 2]]


def test_without_bounds_a_file_is_one_document(tmp_path):
    assert _documents(open_token_files(_nanogpt(tmp_path / "x"))) == [FLAT]


def test_what_is_not_to_be_learned(tmp_path):
    loss = [n % 3 != 0 for n in range(14)]
    shards = open_token_files(_datatrove(tmp_path / "x", loss=loss))
    batch = PackedBatches(shards, seq_len=14, batch_tokens=14, seed=0, packing="best_fit").batch(0)
    labels = dict(zip(batch.tokens[0].tolist(), batch.labels[0].tolist(), strict=True))
    assert [labels[token] for token in (5, 6, 7, 300)] == [6, 7, -100, 9]  # the token at place 3 is not learned
    plain = open_token_files(_datatrove(tmp_path / "y"))
    assert plain.fingerprint != shards.fingerprint and not plain.has_masks


def test_files_of_a_folder_are_shards_in_order_of_name(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        _datatrove(tmp_path / name / "x", "H" if name == "a" else "I")
    shards = open_token_files([tmp_path / "b", tmp_path / "a"])
    assert _documents(shards) == DOCUMENTS * 2
    assert open_token_files(tmp_path).fingerprint != shards.fingerprint


def test_another_tokenizer_is_noticed(tmp_path):
    tokenizer = Tokenizer.train(["a b c d e f g h"], vocab_size=261)
    with pytest.raises(UserError, match="token 300, and the tokenizer has 261"):
        open_token_files(_datatrove(tmp_path / "x"), tokenizer=tokenizer)


def _break_bytes(suffix, change):
    def broken(path):
        writer = {
            ".bin": _megatron,
            ".idx": _megatron,
            ".ds": _datatrove,
            ".index": _datatrove,
            ".npy": _olmo,
            ".gz": _olmo,
        }
        made = writer[suffix](path)
        target = next(p for p in path.parent.iterdir() if p.suffix == suffix)
        target.write_bytes(change(target.read_bytes()))
        return made

    return broken


def _object_array(path):
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    path.with_suffix(".npy").write_bytes(file.getvalue())
    return path.with_suffix(".npy")


BROKEN = {
    "Megatron tokens cut": (_break_bytes(".bin", lambda data: data[:-2]), "holds 13 tokens, and .* end at 14"),
    "Megatron tokens empty": (_break_bytes(".bin", lambda _: b""), "0 bytes are no whole number"),
    "Megatron index cut": (_break_bytes(".idx", lambda data: data[:-3]), "bytes instead of"),
    "Megatron index empty": (_break_bytes(".idx", lambda _: b""), "does not begin as a Megatron index"),
    "Megatron magic": (_break_bytes(".idx", lambda data: b"X" + data[1:]), "does not begin as a Megatron index"),
    "Megatron floats": (lambda path: _megatron(path, "f", 7), "token type 7"),
    "Megatron offsets": (lambda path: _megatron(path, offsets=[0, 8, 14, 24]), "one after another"),
    "Megatron documents": (lambda path: _megatron(path, documents=(0, 3, 2, 4)), "not runs of its 4 sequences"),
    "datatrove cut": (_break_bytes(".ds", lambda data: data[:-1]), "its index says 14 tokens"),
    "datatrove index cut": (_break_bytes(".index", lambda data: data[:-1]), "no whole number"),
    "datatrove loss cut": (lambda path: _datatrove(path, loss=[1] * 13), "13 bytes instead of 14"),
    "OLMo cut": (_break_bytes(".npy", lambda data: data[:-2]), "says 14 tokens of 2 or 4 bytes"),
    "OLMo table cut": (_break_bytes(".gz", lambda data: data[: len(data) // 2]), "do not begin with a start"),
    "OLMo table of words": (_break_bytes(".gz", lambda _: gzip.compress(b"a,b\n")), "do not begin with a start"),
    "OLMo gap": (_break_bytes(".gz", lambda _: gzip.compress(b"0,4\n5,14\n")), "one after another"),
    "floats": (lambda path: _numpy(path, "<f4"), "float32"),
    "two dimensions": (lambda path: _numpy(path, values=[FLAT, FLAT]), "one row of integers"),
    "objects": (_object_array, "cannot be read"),
    "llm.c cut": (lambda path: _cut(_llm_c(path)), "says 14 tokens and it holds 13"),
    "negative": (lambda path: _numpy(path, "<i4", values=[3, -1]), "negative token"),
}  # fmt: skip


def _cut(path):
    path.write_bytes(path.read_bytes()[:-2])
    return path


@pytest.mark.parametrize(("broken", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_damage_is_a_user_error(tmp_path, broken, message):
    with pytest.raises(UserError, match=message):
        open_token_files(broken(tmp_path / "x"))


def test_missing_companions_and_files(tmp_path):
    path = _datatrove(tmp_path / "x")
    path.with_name("x.ds.index").unlink()
    with pytest.raises(UserError, match=r"no x\.ds\.index beside it"):
        open_token_files(path)
    path.unlink()
    with pytest.raises(UserError, match="is no token file and holds none"):
        open_token_files(tmp_path)
    with pytest.raises(UserError, match="is no token file and holds none"):
        open_token_files(tmp_path / "nothing.ds")
    _olmo(tmp_path / "y").with_suffix(".csv.gz").unlink()
    with pytest.raises(UserError, match=r"no y\.csv\.gz beside it"):
        open_token_files(tmp_path / "y.npy")
    with pytest.raises(UserError, match="at least one"):
        open_token_files([])
