"""The formats, a function each. Their layouts are from the toolkits' own writers; all are little-endian."""

import csv
import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from leyden.core.errors import UserError
from leyden.data.shards import TokenFile

_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_TOKENS = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats
_LLM_C_TOKENS = {20240520: "<u2", 20240801: "<u4"}
_LLM_C_HEADER_BYTES = 256 * 4


def files_of(path: Path) -> list[Path]:
    """A token file and the files beside it that belong to it."""
    beside = {
        ".bin": [path.with_suffix(".idx")],
        ".ds": [path.with_name(f"{path.name}{suffix}") for suffix in (".index", ".loss")],
        ".npy": [path.with_suffix(".csv.gz")],
    }
    return [path, *(one for one in beside[path.suffix] if one.exists())]


def read_bin(path: Path, document_token: int | None) -> TokenFile:
    """Megatron's (``.idx`` beside it), llm.c's (a header of 256 int32) or nanoGPT's (nothing but uint16)."""
    if path.with_suffix(".idx").exists():
        return read_megatron(path)
    header = np.fromfile(path, "<i4", 3)
    if len(header) == 3 and int(header[0]) in _LLM_C_TOKENS:
        tokens = _map(path, np.dtype(_LLM_C_TOKENS[int(header[0])]), _LLM_C_HEADER_BYTES)
        if len(tokens) != header[2]:
            raise _broken(path, f"its header says {header[2]} tokens and it holds {len(tokens)}")
    else:
        tokens = _map(path, np.dtype("<u2"))
    return _split(tokens, document_token)


def read_megatron(path: Path) -> TokenFile:
    """Megatron-LM's indexed dataset, version 1: magic, version, type, counts, then lengths, byte offsets, documents.

    A document is one sequence or several (sentences).
    """
    index = path.with_suffix(".idx")
    data = index.read_bytes()
    head = struct.Struct("<9sQBQQ")
    if len(data) < head.size or not data.startswith(_MEGATRON_MAGIC):
        raise _broken(index, "it does not begin as a Megatron index does")
    _, version, code, num_sequences, num_documents = head.unpack_from(data)
    if version != 1 or code not in _MEGATRON_TOKENS:
        raise _broken(index, f"it is of version {version} and token type {code}; version 1 with integers is read")
    expected = head.size + num_sequences * 12 + num_documents * 8
    if len(data) not in (expected, expected + num_sequences):  # a mode a sequence follows in multimodal ones
        raise _broken(index, f"it has {len(data)} bytes instead of {expected}")
    lengths = np.frombuffer(data, "<i4", num_sequences, head.size).astype(np.int64)
    offsets = np.frombuffer(data, "<i8", num_sequences, head.size + num_sequences * 4)
    documents = np.frombuffer(data, "<i8", num_documents, head.size + num_sequences * 12)
    tokens = _map(path, np.dtype(_MEGATRON_TOKENS[code]))
    ends = np.cumsum([0, *lengths.tolist()])
    if not np.array_equal(offsets, ends[:-1] * tokens.itemsize):
        raise _broken(index, "its sequences do not lie one after another")
    if num_documents < 1 or documents[0] or documents[-1] != num_sequences or np.any(np.diff(documents) < 0):
        raise _broken(index, f"its documents are not runs of its {num_sequences} sequences")
    return _documents(path, tokens, ends[documents[1:]])


def read_datatrove(path: Path, document_token: int | None = None) -> TokenFile:
    """datatrove's: uint16 or uint32; ``.index`` has documents' ends as uint64, ``.loss`` a byte a token."""
    index = path.with_name(f"{path.name}.index")
    if not index.exists():
        raise _broken(path, f"there is no {index.name} beside it, which says where documents end")
    ends = _map(index, np.dtype("<u8")).astype(np.int64)
    num_tokens = int(ends[-1]) if len(ends) else 0
    size = path.stat().st_size
    if size not in (2 * num_tokens, 4 * num_tokens):
        raise _broken(path, f"it has {size} bytes; its index says {num_tokens} tokens of 2 or 4 bytes")
    tokens = _map(path, np.dtype("<u2" if size == 2 * num_tokens else "<u4"))
    file = _documents(path, tokens, ends)
    loss = path.with_name(f"{path.name}.loss")
    if not loss.exists():
        return file
    learned = _map(loss, np.dtype("?"))
    if len(learned) != num_tokens:
        raise _broken(loss, f"it has {len(learned)} bytes instead of {num_tokens}")
    return TokenFile(file.tokens, file.starts, file.lengths, np.packbits(learned, bitorder="little"))


def read_npy(path: Path, document_token: int | None) -> TokenFile:
    """NumPy's, or OLMo's, which has no header in spite of its name; ``.csv.gz`` has documents' starts and ends."""
    with path.open("rb") as file:
        has_header = file.read(len(npy_format.MAGIC_PREFIX)) == npy_format.MAGIC_PREFIX
    ends = _csv_ends(path.with_suffix(".csv.gz"))
    if has_header:
        try:
            tokens = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except ValueError as error:
            raise _broken(path, str(error)) from None
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise _broken(path, f"it holds {tokens.dtype} of shape {tokens.shape}; one row of integers is read")
    elif ends is None:
        raise _broken(path, f"it has no header, and no {path.stem}.csv.gz beside it tells how wide its tokens are")
    else:
        size, count = path.stat().st_size, int(ends[-1]) if len(ends) else 0
        if count == 0 or size not in (2 * count, 4 * count):
            raise _broken(path, f"it has {size} bytes; its .csv.gz says {count} tokens of 2 or 4 bytes")
        tokens = _map(path, np.dtype("<u2" if size == 2 * count else "<u4"))
    return _split(tokens, document_token) if ends is None else _documents(path, tokens, ends)


def _csv_ends(path: Path) -> np.ndarray | None:
    """The ends of documents: rows of start, end, id, source, place; each starts where the one before ended."""
    if not path.exists():
        return None
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = [(int(row[0]), int(row[1])) for row in csv.reader(file)]
    except (OSError, EOFError, zlib.error, ValueError, IndexError, csv.Error) as error:
        raise _broken(path, f"its rows do not begin with a start and an end ({error})") from None
    ends = np.array([end for _, end in rows], np.int64)
    if [start for start, _ in rows] != [0, *ends.tolist()][: len(rows)]:
        raise _broken(path, "its documents do not lie one after another")
    return ends


def _documents(path: Path, tokens: np.ndarray, ends: np.ndarray) -> TokenFile:
    lengths = np.diff(ends, prepend=0)
    if len(ends) == 0 or ends[-1] != len(tokens) or np.any(lengths < 0):
        end = int(ends[-1]) if len(ends) else 0
        raise _broken(path, f"it holds {len(tokens)} tokens, and its documents end at {end}")
    return TokenFile(tokens, ends - lengths, lengths)


def _split(tokens: np.ndarray, document_token: int | None) -> TokenFile:
    """Documents by the token that ends each, or begins each where the file begins with it."""
    if document_token is None:
        ends = np.array([len(tokens)])
    else:
        found = np.flatnonzero(tokens == document_token)
        ends = found[1:] if len(found) and not found[0] else found + 1
        ends = np.unique(np.append(ends, len(tokens)))
    lengths = np.diff(ends, prepend=0)
    return TokenFile(tokens, ends - lengths, lengths)


def _map(path: Path, dtype: np.dtype, offset: int = 0) -> np.ndarray:
    size = path.stat().st_size - offset if path.is_file() else 0
    if size <= 0 or size % dtype.itemsize:
        raise _broken(
            path, f"its {max(size, 0)} bytes are no whole number of tokens of {dtype.itemsize} bytes, or none"
        )
    return np.asarray(np.memmap(path, dtype, mode="r", offset=offset))


def _broken(path: Path, what: str) -> UserError:
    return UserError(f"{path} cannot be read: {what}. It may be truncated; make it again, or leave it out.")
