"""Directories of safetensors files: read lazily by memory map, checked as a whole, written in shards.

Headers are read here, not by the safetensors library, so that a damaged or truncated file is told tensor by tensor.
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from leyden.core.errors import UserError
from leyden.core.files import read_text

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_HEADER_BYTES = 100 * 10**6  # the format's own limit
_MAX_JSON_BYTES = 1 << 28
_BLOCK_BYTES = 4 << 20  # of what is read at once
_LISTED = 8  # how many names of one kind of problem an error prints


@dataclass(frozen=True)
class StoredTensor:
    """What a file's header says of one tensor.

    Attributes:
        file: the file that holds it.
        dtype: the format's name of its dtype, as ``"BF16"``.
        shape: its shape.
        start: the byte of the file at which its elements begin.
        complete: False where the file ends before the tensor does.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    complete: bool


def cut(stored: StoredTensor, first: int, last: int) -> StoredTensor:
    """The rows of dim 0 from ``first`` up to ``last``, as a tensor by themselves."""
    row_bytes = math.prod(stored.shape[1:]) * _DTYPES[stored.dtype].itemsize
    return replace(stored, shape=(last - first, *stored.shape[1:]), start=stored.start + first * row_bytes)


class TensorFiles(Mapping[str, torch.Tensor]):
    """The tensors of a directory by name; reading one maps it into memory and copies nothing.

    Attributes:
        directory: as given.
        stored: what the headers say, by name.
        problems: what is wrong with the files themselves, in words; :meth:`check` raises them.

    Raises:
        UserError: the directory holds no safetensors file.
    """

    described_by = "its config.json"
    """What says which tensors there should be."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stored: dict[str, StoredTensor] = {}
        self.problems: list[str] = []
        self._open: dict[Path, Any] = {}
        self._parts: dict[str, tuple[str, int, int]] = {}
        """Of a part of a tensor, the tensor's name, its first row and the one behind its last."""
        for file in self._files():
            self._read_header(file)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._parts:
            return self._open[self.stored[name].file].get_tensor(name)
        whole, first, last = self._parts[name]
        return self._open[self.stored[name].file].get_tensor(whole)[first:last]

    def divide(self, name: str, parts: Mapping[str, tuple[int, ...]]) -> None:
        """Put into the place of a tensor that :meth:`check` accepted its parts, which lie above one another in it.

        Args:
            name: of the tensor.
            parts: their names and shapes, from top to bottom.
        """
        whole, at = self.stored.pop(name), 0
        for part, (rows, *_) in parts.items():
            self.stored[part], self._parts[part] = cut(whole, at, at + rows), (name, at, at + rows)
            at += rows

    def __iter__(self):
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor that :meth:`check` accepted."""
        return _DTYPES[self.stored[name].dtype]

    def read_rows(self, name: str) -> Iterator[torch.Tensor]:
        """The rows of a tensor, from the first to the last, some MB at a time.

        Unlike a map, whose pages count as this process's memory once they were touched, this holds one block, which
        the next one overwrites.

        Yields:
            [rows, columns] of its last dim, in the stored dtype.

        Raises:
            UserError: the file has become shorter since it was opened.
        """
        yield from self._rows_of(self.stored[name], name)

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """The rows of dim 0 of a tensor from ``first`` up to ``last``, mapped as :meth:`__getitem__` does."""
        return self[name][first:last]

    def read(self, name: str, first: int, last: int) -> torch.Tensor:
        """As :meth:`rows`, in memory of their own."""
        return self._read(cut(self.stored[name], first, last), name)

    def _read(self, stored: StoredTensor, name: str) -> torch.Tensor:
        """Where the bytes of ``name`` are those of ``stored``."""
        found = torch.empty(stored.shape, dtype=_DTYPES[stored.dtype])
        at, flat = 0, found.view(-1)
        for rows in self._rows_of(stored, name):
            flat[at : at + rows.numel()] = rows.view(-1)
            at += rows.numel()
        return found

    def _rows_of(self, stored: StoredTensor, name: str) -> Iterator[torch.Tensor]:
        """As :meth:`read_rows`, where the bytes of ``name`` are those of ``stored``."""
        *rows, columns = stored.shape or (1,)
        num_rows, dtype = math.prod(rows), _DTYPES[stored.dtype]
        step = max(1, _BLOCK_BYTES // (max(1, columns) * dtype.itemsize))
        buffer = torch.empty(min(step, num_rows), columns, dtype=dtype)
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.start)
            for first in range(0, num_rows, step):
                block = buffer[: num_rows - first]
                left = block.view(-1).view(torch.uint8).numpy().data
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise UserError(f"{stored.file} ends within {name}; it was complete when it was opened.")
                    left = left[count:]
                yield block

    def forget_copy(self, name: str, of: str) -> None:
        """Take no notice of the tensor ``name`` if it is a copy of ``of``; if it is not, :meth:`check` says so."""
        first, second = self.stored[name], self.stored.get(of)
        if second is None or not (first.complete and second.complete) or first.dtype not in _DTYPES:
            return
        alike = (first.shape, first.dtype) == (second.shape, second.dtype) and len(first.shape) > 0
        if alike and all(map(torch.equal, self.read_rows(name), self.read_rows(of))):
            del self.stored[name]
        else:
            self.problems.append(f"{name} is no copy of {of}, though config.json ties the two (tie_word_embeddings)")

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Compare with the names and shapes that there should be.

        Raises:
            UserError: one that lists everything wrong: missing, unexpected, of another shape or dtype, truncated.
        """
        missing = [name for name in wanted if name not in self.stored]
        unexpected = [name for name in self.stored if name not in wanted]
        known = {name: tensor for name, tensor in self.stored.items() if name in wanted}
        shapes = [
            f"{name} is {list(tensor.shape)} and should be {list(wanted[name])}"
            for name, tensor in known.items()
            if tensor.shape != tuple(wanted[name])
        ]
        dtypes = [f"{name} is {t.dtype}" for name, t in known.items() if t.dtype not in _DTYPES]
        truncated = [f"{name} ({t.file.name})" for name, t in known.items() if not t.complete]
        problems = [
            *self.problems,
            *_listing("missing", missing),
            *_listing("unexpected", unexpected),
            *_listing("of another shape", shapes),
            *_listing("truncated", truncated),
            *_listing(f"not of a floating-point dtype that Leyden reads ({', '.join(_DTYPES)})", dtypes),
        ]
        if problems:
            found = "; ".join(problems)
            raise UserError(f"{self.directory} does not hold the model {self.described_by} describes: {found}.")

    def _files(self) -> list[Path]:
        """The files to read: the single one, or those that the index names."""
        single, index = self.directory / SINGLE_FILE, self.directory / INDEX_FILE
        if single.exists():
            return [single]
        if not index.exists():
            pickled = sorted(p.name for p in self.directory.glob("*.bin")) + sorted(
                p.name for p in self.directory.glob("*.pt*")
            )
            what = f"only {pickled[0]}, a pickle, which Leyden never opens" if pickled else "no weights"
            raise UserError(
                f"{self.directory} holds {what}; a model's weights are {SINGLE_FILE}, or shards with {INDEX_FILE}."
            )
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UserError(f"{index} has no 'weight_map' from tensor names to files.")
        files = sorted({str(name) for name in names.values()})
        outside = [name for name in files if not is_plain_name(name)]
        if outside:
            raise UserError(
                f"{index} names what is no file of its directory: {', '.join(map(repr, outside[:_LISTED]))}."
            )
        return [self.directory / name for name in files]

    def _read_header(self, file: Path) -> None:
        try:
            if file.exists() and not file.is_file():
                raise ValueError
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > _MAX_HEADER_BYTES:
                    raise ValueError
                header = json.loads(stream.read(length))
            data_bytes = file.stat().st_size - 8 - length
            header.pop("__metadata__", None)
            tensors = {}
            for name, item in header.items():
                first, last = item["data_offsets"]
                tensors[name] = StoredTensor(
                    file, item["dtype"], tuple(item["shape"]), 8 + length + first, complete=last <= data_bytes
                )
            if all(tensor.complete for tensor in tensors.values()):
                self._open[file] = safe_open(file, framework="pt", device="cpu")  # checks all else, and maps
        except FileNotFoundError:
            self.problems.append(f"the file {file.name} is missing")
            return
        except OSError as error:
            self.problems.append(f"{file.name} cannot be read ({error.strerror or error})")
            return
        except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError):
            self.problems.append(f"{file.name} is truncated, damaged or not a safetensors file")
            return
        twice = [name for name in tensors if name in self.stored]
        self.problems += _listing(f"stored again in {file.name}", twice)
        self.stored.update(tensors)


class UnmappedFiles(Mapping[str, torch.Tensor]):
    """The tensors of ``files``, each read into memory of its own when it is asked for."""

    def __init__(self, files: TensorFiles) -> None:
        self._files = files

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._files.read(name, 0, self._files.stored[name].shape[0])

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """The rows of dim 0 of a tensor from ``first`` up to ``last``; no other is read."""
        return self._files.read(name, first, last)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _listing(kind: str, names: list[str]) -> list[str]:
    """``["2 missing: a, b"]``, or nothing."""
    if not names:
        return []
    rest = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return [f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{rest}"]


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is that of a file in a directory, and leads nowhere else."""
    return name not in ("", ".", "..") and "\0" not in name and Path(name).name == name


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        data = json.loads(read_text(path, _MAX_JSON_BYTES))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; a model is a directory with config.json and its weights.") from None
    except (ValueError, RecursionError) as error:  # among the ValueErrors: a number of more digits than Python reads
        raise UserError(f"{path} is not a JSON file: {error}.") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}; it should hold a JSON object.")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object, indented."""
    path.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_tensors(directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors in the order given, one shard in memory at a time; with an index where there are several."""
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    pending_bytes = total_bytes = 0

    def flush() -> None:
        save_file(pending, directory / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > shard_bytes:
            flush()
            pending_bytes = 0
        pending[name] = tensor.detach().cpu().contiguous()
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()
    for number in range(len(shards)):
        (directory / f"{number}.part").rename(directory / shard_name(number, len(shards)))
    write_index(directory, shards, total_bytes)


def shard_name(number: int, count: int) -> str:
    """What the file ``number`` of ``count`` is called."""
    return SINGLE_FILE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def write_index(directory: Path, shards: Sequence[Sequence[str]], total_bytes: int) -> None:
    """Say which shard holds which names, where there are several."""
    if len(shards) > 1:
        names = [(name, shard_name(number, len(shards))) for number, shard in enumerate(shards) for name in shard]
        write_json(directory / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": dict(names)})
