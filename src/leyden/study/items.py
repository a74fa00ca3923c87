"""Multiple-choice items: read from a file, or built from held-out text so that an experiment needs no benchmark.

Built items ask which text goes on after a stretch of a held-out document. The wrong choices differ by benchmark:
``other_document`` takes them from other documents, ``same_document`` from elsewhere in the same one, ``word_order``
has the right words in a wrong order.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import Field

from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.core.files import atomic_file

_TRIES = 40
"""Places looked at in a document, or other documents asked for a wrong choice, before it is given up."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: unique in its benchmark.
        benchmark: what it belongs to.
        context: the text before.
        choices: the texts that may follow; two at least, each with its leading space.
        answer: the index of the right one.
    """

    id: str
    benchmark: str
    context: str
    choices: tuple[str, ...]
    answer: int


class ItemSettings(Config):
    """Where the items are from: a file, or held-out text."""

    path: Path | None = None
    """JSON lines with the fields of :class:`Item`. None: items are built from the held-out documents."""
    per_benchmark: int = Field(default=150, ge=2)
    """Items of each built benchmark."""
    choices: int = Field(default=4, ge=2)
    """Choices of a built item, the right one included."""
    context_chars: int = Field(default=200, ge=1)
    """Characters of context of a built item."""
    choice_chars: int = Field(default=60, ge=8)
    """Characters of a choice of a built item, about: it ends with a word."""


def read_items(path: Path) -> list[Item]:
    """Items from a file of JSON lines.

    Raises:
        UserError: the file is missing, or a line is no item (which, and why).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"items cannot be read from {path}: {error}.") from None
    items = [_item(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise UserError(f"{path} holds no items.")
    names = [(item.benchmark, item.id) for item in items]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: item '{twice[1]}' of benchmark '{twice[0]}' is there twice.")
    return items


def write_items(items: Iterable[Item], path: Path) -> None:
    """Items to a file of JSON lines."""
    with atomic_file(path) as part:
        part.write_text("".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items), "utf-8")


def items_fingerprint(items: Sequence[Item]) -> str:
    """A hash of everything that the items say, in their order."""
    return hashlib.sha256(json.dumps([asdict(item) for item in items]).encode()).hexdigest()


def build_items(documents: Sequence[str], settings: ItemSettings, *, seed: int) -> list[Item]:
    """Items from held-out documents, every benchmark from the same places.

    Raises:
        UserError: the documents are too few or too short for so many items.
    """
    rng = random.Random(seed)
    places = _places(documents, settings, rng)
    items = []
    for benchmark, wrong in _BENCHMARKS.items():
        made: list[Item] = []
        for document, start, end in places:
            right = document[start:end]
            others = _distinct(lambda d=document, s=start, e=end, w=wrong: w(documents, d, s, e, rng), right, settings)
            if others is not None and len(made) < settings.per_benchmark:
                choices = [right, *others]
                rng.shuffle(choices)
                context = document[start - settings.context_chars : start]
                made.append(Item(f"{len(made):05d}", benchmark, context, tuple(choices), choices.index(right)))
        if len(made) < settings.per_benchmark:
            raise UserError(
                f"the {len(documents)} held-out documents give {len(made)} items of benchmark '{benchmark}', not "
                f"{settings.per_benchmark}; hold out more text, or lower items.per_benchmark."
            )
        items += made
    return items


def shuffle_words(text: str, seed: str) -> str:
    """``text`` with its words in a random order that depends on ``seed`` and the text alone; spaces stay in place."""
    parts = re.split(r"(\s+)", text)
    words = [part for part in parts[::2] if part]
    digest = hashlib.blake2b(f"{seed}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    random.Random(int.from_bytes(digest, "big")).shuffle(words)
    remaining = iter(words)
    return "".join(next(remaining) if index % 2 == 0 and part else part for index, part in enumerate(parts))


def _item(line: str, where: str) -> Item:
    try:
        given = json.loads(line)
        item = Item(**{**given, "choices": tuple(given["choices"])})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where} is no item: {error}; it needs id, benchmark, context, choices, answer.") from None
    texts = (item.id, item.benchmark, item.context, *item.choices)
    if not all(isinstance(text, str) for text in texts) or not isinstance(item.answer, int):
        raise UserError(f"{where}: id, benchmark, context and choices are texts, answer a number.")
    if len(item.choices) < 2 or not all(item.choices) or not 0 <= item.answer < len(item.choices):
        raise UserError(f"{where}: an item has two choices or more, none empty, and answer counts from 0 among them.")
    return item


Place = tuple[str, int, int]
"""A document, and where the text to be guessed starts and ends in it."""


def _places(documents: Sequence[str], settings: ItemSettings, rng: random.Random) -> list[Place]:
    """Places to ask about, more than are needed, spread over the documents; none twice."""
    places: dict[Place, None] = {}
    usable = [text for text in documents if len(text) > settings.context_chars + 2 * settings.choice_chars]
    for _ in range(_TRIES):
        for text in rng.sample(usable, len(usable)):
            span = _span(text, rng.randrange(settings.context_chars, len(text)), settings.choice_chars)
            if span is not None:
                places[(text, *span)] = None
        if len(places) > 2 * settings.per_benchmark:
            break
    return list(places)


def _span(text: str, near: int, length: int) -> tuple[int, int] | None:
    """From a space behind ``near``, whole words of about ``length`` characters, three at least."""
    found = re.compile(r"(?<=\S)[ ](?=\S)").search(text, near)
    if found is None:
        return None
    end = re.compile(r"(?=\s)").search(text, found.start() + length)
    if end is None or end.start() > found.start() + 2 * length:
        return None
    span = (found.start(), end.start())
    return span if len(text[slice(*span)].split()) >= 3 else None


def _distinct(draw: Callable[[], str | None], right: str, settings: ItemSettings) -> list[str] | None:
    """As many different wrong choices as an item needs, or None."""
    chosen: dict[str, None] = {}
    for _ in range(_TRIES):
        text = draw()
        if text is not None and text != right:
            chosen[text] = None
        if len(chosen) == settings.choices - 1:
            return list(chosen)
    return None


def _from_other_document(
    documents: Sequence[str], document: str, start: int, end: int, rng: random.Random
) -> str | None:
    other = rng.choice(documents)
    if other is document or not other:
        return None
    span = _span(other, rng.randrange(len(other)), end - start)
    return None if span is None else other[slice(*span)]


def _from_same_document(
    documents: Sequence[str], document: str, start: int, end: int, rng: random.Random
) -> str | None:
    span = _span(document, rng.randrange(len(document)), end - start)
    return None if span is None or (span[0] < end and start < span[1]) else document[slice(*span)]


def _in_other_order(documents: Sequence[str], document: str, start: int, end: int, rng: random.Random) -> str | None:
    return shuffle_words(document[start:end], str(rng.random()))


_BENCHMARKS = {
    "other_document": _from_other_document,
    "same_document": _from_same_document,
    "word_order": _in_other_order,
}
