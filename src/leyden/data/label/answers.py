"""A cache of a model's answers: a run that was killed, or a later one, asks nothing twice."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Self

import xxhash

from leyden.core.errors import UserError
from leyden.core.files import disk_errors_are_user_errors
from leyden.data.label.language_model import LanguageModel, ModelRequest, Reply

_HOPELESS = 8
"""As many requests, all refused, mean that the fault is not in the documents."""


class Answers:
    """A file of answers (``answers.jsonl``), by :meth:`ModelRequest.key`; one process at a time may write.

    In memory there is the place of each answer alone, about 150 bytes. Use as a context manager where answers are put.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "answers.jsonl"
        self._places: dict[bytes, int] = {}
        self._end = self._read() if self._path.exists() else 0
        self._appended: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._appended is not None:
            self._appended.close()
            self._appended = None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._places

    def get(self, key: str) -> Reply | None:
        """The answer kept under a key."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        with self._path.open("rb") as file:
            file.seek(place)
            line = json.loads(file.readline())
        return Reply(line["text"], line["finish"])

    def put(self, key: str, answer: Reply) -> None:
        """Keep an answer; it has left this process when this returns."""
        line = _line(key, answer)
        with disk_errors_are_user_errors(self._path):
            if self._appended is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._appended = self._path.open("ab")
                self._appended.truncate(self._end)  # what a killed run left of its last line
            self._appended.write(line)
            self._appended.flush()
        self._places[bytes.fromhex(key)] = self._end
        self._end += len(line)

    def _read(self) -> int:
        """Find every answer; returns where the last whole line ends.

        Raises:
            UserError: a line but the last is damaged.
        """
        place = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    self._places[_checked_key(line)] = place
                except (ValueError, LookupError, TypeError):
                    raise UserError(
                        f"{self._path} is damaged at byte {place}; remove that line, or the file to ask all again."
                    ) from None
                place += len(line)
        return place


def _line(key: str, answer: Reply) -> bytes:
    """An answer as it is kept, with a hash, since it is not asked for again."""
    said = {"key": key, **asdict(answer)}
    return json.dumps({**said, "hash": _hash_of(said)}).encode() + b"\n"


def _checked_key(line: bytes) -> bytes:
    """The key of a kept answer.

    Raises:
        ValueError, LookupError, TypeError: the line is damaged; older ones have no hash.
    """
    said = json.loads(line)
    if "hash" in said and said.pop("hash") != _hash_of(said):
        raise ValueError("it is not what was written")
    return bytes.fromhex(said["key"])


def _hash_of(said: dict[str, str]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(said, sort_keys=True).encode())


def ask(model: LanguageModel, requests: Sequence[ModelRequest], answers: Answers) -> list[str]:
    """Ask what has not been answered yet; the answers are in ``answers`` afterwards, but for requests refused.

    Returns:
        [R] the key of each request.

    Raises:
        UserError: as the model's; or it refuses everything.
    """
    keys = [request.key(model.identity) for request in requests]
    missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in answers}
    order, refused = list(missing), []
    for index, answer in model.complete(list(missing.values())):
        if answer.finish == "refused":
            refused.append(answer.text)
        else:
            answers.put(order[index], answer)
    if len(refused) == len(order) >= _HOPELESS:
        raise UserError(f"{model.identity} refused all {len(refused)} requests, the first with: {refused[0]}.")
    return keys
