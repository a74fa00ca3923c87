"""``leyden bench planted``: a data build over this machine's own text with faults planted in it, and what was found.

A fault is planted as the stages claim to find it, and looked for in the build's files: a copy is found if it or its
original was dropped as a duplicate, junk if it was dropped, an address if it was masked, a damaged file if it was set
aside.
"""

import gzip
import json
import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COPIES, JUNK = 100, 25
"""How many documents of each kind of copy, and of each other kind, are planted."""
_EVALUATION_WORDS = 24
_FINNISH = (
    "Talvi tuli tänä vuonna aikaisin ja lumi peitti pellot jo ennen marraskuun loppua.",
    "Vanha kalastaja korjasi verkkojaan rannalla ja katseli, kuinka aurinko laski järven taakse.",
    "Kaupungin kirjastossa järjestettiin ilta, jossa luettiin runoja ja keskusteltiin kirjoista.",
    "Lapset juoksivat koulusta kotiin, vaikka tie oli jäinen ja tuuli puhalsi vastaan.",
    "Kahvilassa tuoksui tuore pulla, ja ihmiset istuivat pitkään ikkunan ääressä.",
    "Metsässä oli hiljaista, kunnes metso lähti lentoon aivan polun vierestä.",
)


@dataclass
class Plants:
    """What was planted.

    Attributes:
        documents: by kind, the ids of documents (as the build names them).
        originals: of each copy, the path of the file it was copied from.
        clean: of each rewritten document, what must not be in it any more.
        broken: names of files that cannot be read.
    """

    documents: dict[str, list[str]] = field(default_factory=dict)
    originals: dict[str, str] = field(default_factory=dict)
    clean: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class Planter:
    """Writes faulty documents into a folder of their own.

    Args:
        folder: ``plants.jsonl``, ``broken/`` and ``evaluation.jsonl`` are written into it.
        seed: of every choice.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._sentences = _sentences()
        self._folder = folder
        self._rows: list[dict[str, str]] = []
        self.plants = Plants()

    def plant(self, originals: Sequence[Path]) -> Plants:
        """Plant every kind of fault; ``originals`` are the files to copy."""
        for path in originals:
            text = path.read_text(encoding="utf-8")
            self._copy("exact copy", path, text)
            self._copy("near copy", path, self._edited(text))
        for kind, make in self._junk().items():
            for _ in range(JUNK):
                self._add(kind, make())
        for _ in range(JUNK):
            self._leaking()
            self._garbled()
        self._contaminated()
        self._write()
        return self.plants

    def _add(self, kind: str, text: str) -> str:
        name = f"{kind.replace(' ', '-')}-{len(self._rows):05d}"
        self._rows.append({"name": name, "text": text})
        self.plants.documents.setdefault(kind, []).append(name)
        return name

    def _copy(self, kind: str, path: Path, text: str) -> None:
        self.plants.originals[self._add(kind, text)] = str(path)

    def _edited(self, text: str) -> str:
        """One word of a hundred replaced, which leaves about 0.9 of the shingles of five words."""
        lines = text.split("\n")
        for number, line in enumerate(lines):
            words = line.split(" ")
            for place, word in enumerate(words):
                if word and self._random.random() < 0.01:
                    words[place] = self._word()
            lines[number] = " ".join(words)
        return "\n".join(lines)

    def _word(self) -> str:
        return "".join(self._random.choices(string.ascii_lowercase, k=self._random.randint(3, 9)))

    def _prose(self) -> str:
        """Sentences of this Python's own documentation, in paragraphs."""
        paragraphs = [" ".join(self._random.sample(self._sentences, 8)) for _ in range(6)]
        return "\n".join(paragraphs)

    def _junk(self) -> Mapping[str, Callable[[], str]]:
        choose = self._random.choice
        return {
            "lorem ipsum": lambda: self._prose() + "\nLorem ipsum dolor sit amet, consectetur adipiscing elit.",
            "keyword list": lambda: "\n".join(self._word() + " " + self._word() for _ in range(400)),
            "repeated line": lambda: (choose(self._sentences) + "\n") * 80,
            "repeated phrase": lambda: " ".join([" ".join(self._word() for _ in range(3)) + " of the and to"] * 120),
            "symbols": lambda: " ".join(choose(["#", "...", self._word(), "#" + self._word()]) for _ in range(400)),
            "too short": lambda: choose(self._sentences),
            "menu": lambda: "\n".join(self._word().title() for _ in range(300)),
            "another language": lambda: " ".join(self._random.choices(_FINNISH, k=12)),
        }

    def _leaking(self) -> None:
        address = f"{self._word()}.{self._word()}@{self._word()}.com"
        name = self._add("mail address", self._prose() + f"\nPlease write to {address} for the minutes.")
        self.plants.clean[name] = address

    def _garbled(self) -> None:
        wrong = "naïve café – “quoted” façade".encode().decode("cp1252", errors="replace")
        name = self._add("garbled Unicode", self._prose() + f"\nThe {wrong} stood at the {self._word()} corner.")
        self.plants.clean[name] = "Ã"

    def _contaminated(self) -> None:
        questions = [" ".join(self._word() for _ in range(_EVALUATION_WORDS)) for _ in range(JUNK)]
        with (self._folder / "evaluation.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": question}) + "\n" for question in questions)
        for question in questions:
            self._add("evaluation item", self._prose() + f"\nThe task was: {question}.\n" + self._prose())

    def _write(self) -> None:
        with (self._folder / "plants.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in self._rows)
        broken = self._folder / "broken"
        broken.mkdir(exist_ok=True)
        whole = gzip.compress(self._prose().encode())
        files = {
            "cut.txt.gz": whole[: len(whole) // 2],
            "latin.txt": "Straße und Öl".encode("latin-1"),
            "nul.txt": b"a text with\0a NUL byte",
            "empty.txt": b"",
            "deep.jsonl": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
            "types.jsonl": b'{"text": 5}\n',
            "not.jsonl": b"neither {JSON nor lines\n",
            "cut.parquet": b"PAR1" + bytes(100),
        }
        for name, data in files.items():
            (broken / name).write_bytes(data)
        self.plants.broken = sorted(files)


def _sentences() -> list[str]:
    """Sentences of prose from the topics of Python's own help."""
    from pydoc_data import topics

    found = []
    for text in topics.topics.values():
        for paragraph in text.split("\n\n"):
            flat = " ".join(paragraph.split())
            sentences = (sentence.strip().rstrip(".") + "." for sentence in flat.split(". "))
            found += [s for s in sentences if s[:1].isupper() and 8 <= len(s.split()) <= 30]
    return sorted({s for s in found if not set(s) & set("{}<>*|`~^\\_=[]()")})


@dataclass(frozen=True)
class Found:
    """How many of one kind of plant were found."""

    kind: str
    planted: int
    found: int
    how: dict[str, int]


def check(plants: Plants, fates: Mapping[str, Mapping[str, Any]], rejected: Sequence[str]) -> list[Found]:
    """Look for every plant.

    Args:
        plants: what was planted.
        fates: by name of a plant or path of an original: ``reason`` (None where it was kept) and ``text``.
        rejected: the names of files that were set aside.
    """
    rows = []
    for kind, names in plants.documents.items():
        how: dict[str, int] = {}
        for name in names:
            verdict = _verdict(plants, fates, name)
            how[verdict or "missed"] = how.get(verdict or "missed", 0) + 1
        rows.append(Found(kind, len(names), len(names) - how.get("missed", 0), how))
    aside = len(set(plants.broken) & set(rejected))
    return [*rows, Found("file that cannot be read", len(plants.broken), aside, {"set aside": aside})]


def _verdict(plants: Plants, fates: Mapping[str, Mapping[str, Any]], name: str) -> str | None:
    """How a plant was found; None where it was not."""
    fate = fates[name]
    if name in plants.originals:
        of_original = fates[plants.originals[name]]["reason"] or ""
        if "duplicate" in (fate["reason"] or ""):
            return fate["reason"]
        return f"original: {of_original}" if "duplicate" in of_original else None
    if name in plants.clean:
        return fate["reason"] or (None if plants.clean[name] in fate["text"] else "rewritten")
    return fate["reason"]
