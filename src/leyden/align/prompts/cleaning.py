"""Prompts without duplicates, and without what evaluation sets ask; all by the stages of :mod:`leyden.data.dedup`."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leyden.align.chats.read import read_rows
from leyden.align.ngrams import Said, ngram_sets
from leyden.align.prompts.rows import PromptRow, prompt_row
from leyden.core.errors import UserError
from leyden.core.files import discard
from leyden.core.log import progress
from leyden.data.dedup.alone import run_alone
from leyden.data.dedup.contamination import Contamination
from leyden.data.dedup.exact import Exact
from leyden.data.dedup.minhash import MinHash
from leyden.data.documents import Document, Documents, Reject
from leyden.data.parquet import BATCH_DOCUMENTS, DocumentsWriter
from leyden.data.readers.problem import Problem
from leyden.data.stage import Stage

_EARLIER = "of earlier crawl's "
"""What the stages call documents that are not of the build: here, items of evaluation sets."""


@dataclass(frozen=True)
class CleaningSettings:
    """What counts as the same.

    Attributes:
        similarity: Jaccard similarity of five-word shingles from which two prompts are near-duplicates; 1 and more:
            none are.
        ngram_words: words of an n-gram, of duplicates and of evaluation sets (GPT-3: 13).
        ngram_share: a prompt goes if so much of its n-grams stands in prompts before it; above 1: none goes.
        overlap: a prompt goes if it holds so much of an evaluation item's n-grams; 0: one is enough (GPT-3).
    """

    similarity: float = 0.8
    ngram_words: int = 13
    ngram_share: float = 0.8
    overlap: float = 0.0


@dataclass(frozen=True)
class Dropped:
    """A prompt that goes, with why, for people, and the evaluation set that it is of, if it is."""

    prompt: PromptRow
    reason: str
    detail: str
    evaluation_set: str | None


def clean(
    prompts: Sequence[PromptRow], against: Sequence[str], settings: CleaningSettings, work: Path, rejects: list[Reject]
) -> tuple[list[PromptRow], list[Dropped]]:
    """The prompts that stay, in their order, and those that go.

    Args:
        prompts: any.
        against: files of evaluation sets: a prompt that equals an item, is near to one, or shares n-grams goes.
        settings: what counts.
        work: a folder for what the stages write; it is emptied.
        rejects: takes what of the evaluation sets is set aside.

    Raises:
        UserError: an evaluation set cannot be read or has no text.
    """
    discard(work)
    work.mkdir(parents=True)
    sets = _EvaluationSets(against, work, rejects)
    stages: list[Stage] = [Exact.parse({"against": sets.documents}, "duplicates")]
    if settings.similarity < 1:
        near = {"threshold": settings.similarity, "verify": True, "evidence_documents": 0, "against": sets.documents}
        stages.append(MinHash.parse(near, "--similarity"))
    if against:
        words = settings.ngram_words
        stages.append(
            Contamination(sets=sets.items, ngram_words=words, min_words=min(8, words), overlap=settings.overlap)
        )
    kept, dropped = list(prompts), list[Dropped]()
    with progress("duplicates", len(stages) + 1, "passes") as bar:
        for number, stage in enumerate(stages):
            kept, gone = _pass(kept, stage, work / str(number), sets)
            dropped += gone
            bar.advance(1)
        kept, gone = _said_before(kept, settings)
        bar.advance(1)
    discard(work)
    return kept, dropped + gone


class _EvaluationSets:
    """Evaluation sets, as the stages read them: prompts as documents, and every text of an item to search for."""

    def __init__(self, against: Sequence[str], work: Path, rejects: list[Reject]) -> None:
        self.names: list[str] = []
        asked, items = list[Document](), list[Path]()
        for number, path in enumerate(dict.fromkeys(against)):
            name = path if Path(path).name in self.names else Path(path).name
            self.names.append(name)
            file = work / f"set {number}.jsonl"  # given names may be patterns, or of any length
            with file.open("w") as out:
                for place, row in read_rows([path], rejects, lambda row, id, _: (id, row), "items"):
                    texts = {key: value for key, value in row.items() if isinstance(value, str)}
                    try:
                        prompt = prompt_row(row, place, path)
                        asked.append(Document(f"{name} {place.rpartition(':')[2]}", prompt.text, name))
                        texts["prompt"] = prompt.text
                    except Problem:
                        pass  # an item without a prompt, as a passage: its texts are still searched for
                    out.write(json.dumps(texts) + "\n")
            if not file.stat().st_size:
                raise UserError(f"--against {path} has no items; give a file of rows.")
            items.append(file)
        self.items = tuple(items)
        self.documents: tuple[Path, ...] = ()
        if asked:
            self.documents = (work / "evaluation.parquet",)
            _write(asked, self.documents[0])

    def named(self, text: str) -> str:
        """What a stage says, with sets by the names that the user gave them."""
        return re.sub(r"\bset (\d+)\.jsonl", lambda found: self.names[int(found[1])], text, count=1)

    def of(self, reason: str, detail: str) -> str | None:
        """The set that a stage found a prompt in."""
        if reason.startswith("contaminated by "):
            return reason.removeprefix("contaminated by ")
        return next((name for name in self.names if detail.startswith(f"of {name} ")), None)


def _pass(
    prompts: list[PromptRow], stage: Stage, work: Path, sets: _EvaluationSets
) -> tuple[list[PromptRow], list[Dropped]]:
    """What one stage leaves of prompts, and what it drops."""
    if not prompts:
        return [], []
    file = work.with_suffix(".parquet")
    _write((Document(f"prompt {prompt.place}", prompt.text, "prompts") for prompt in prompts), file)
    kept, dropped = list[PromptRow](), list[Dropped]()
    left = iter(prompts)
    for batch in run_alone(stage, {"prompts": file}, work):
        for reason, detail in zip(batch.column("reason"), batch.column("detail"), strict=True):
            prompt = next(left)
            if reason is None:
                kept.append(prompt)
            else:
                reason = sets.named(reason)
                said = sets.named((detail or "").replace(_EARLIER, "of "))
                dropped.append(Dropped(prompt, reason, said, sets.of(reason, said)))
    return kept, dropped


def _said_before(prompts: list[PromptRow], settings: CleaningSettings) -> tuple[list[PromptRow], list[Dropped]]:
    """Prompts whose n-grams are mostly new, in their order; one of fewer words than an n-gram has none to compare."""
    kept, dropped, said = list[PromptRow](), list[Dropped](), Said()
    for number, (prompt, ngrams) in enumerate(
        zip(prompts, ngram_sets([prompt.text for prompt in prompts], settings.ngram_words), strict=True)
    ):
        share, owner = said.share(ngrams) if len(ngrams) > 1 else (0.0, None)
        if owner is not None and share >= settings.ngram_share:
            detail = f"{100 * share:.0f} % of its n-grams, most in prompt {prompts[owner].place}"
            dropped.append(Dropped(prompt, "n-grams said before", detail, None))
            continue
        said.keep(ngrams, number)
        kept.append(prompt)
    return kept, dropped


def _write(documents: Iterable[Document], path: Path) -> None:
    every = list(documents)
    with DocumentsWriter(path) as writer:
        for start in range(0, len(every), BATCH_DOCUMENTS):
            writer.write(Documents.of(every[start : start + BATCH_DOCUMENTS]))


def contamination_report(dropped: Sequence[Dropped], num_prompts: int) -> dict[str, Any]:
    """By evaluation set, how many prompts were of it, by what they were found, and the first of them."""
    found: dict[str, Any] = {}
    for one in dropped:
        if one.evaluation_set is None:
            continue
        of_set = found.setdefault(one.evaluation_set, {"prompts": 0, "share": 0.0, "by": {}, "first": []})
        of_set["prompts"] += 1
        of_set["share"] = of_set["prompts"] / num_prompts
        how = "n-grams" if one.reason.startswith("contaminated") else one.reason
        of_set["by"][how] = of_set["by"].get(how, 0) + 1
        if len(of_set["first"]) < 10:
            of_set["first"].append({"prompt": one.prompt.place, "found": one.detail})
    return found
