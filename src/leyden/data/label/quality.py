"""The stage ``quality``: a judge model labels a sample, a fast classifier learns from it and scores everything.

As MiniMax-01 did (arXiv 2501.08313, section 4.1.1), in three dimensions: knowledge, helpfulness, category.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from leyden.core.files import atomic_file
from leyden.core.log import say
from leyden.data.documents import Documents
from leyden.data.label.agreement import on_categories, on_scale
from leyden.data.label.answers import Answers
from leyden.data.label.fast_text import FastTextSettings, classify, train
from leyden.data.label.judge import CATEGORIES, Label, judge_request
from leyden.data.label.labels import Asking, Labelled, check_malformed, label_sample, write_labels
from leyden.data.label.language_model import ModelSettings
from leyden.data.label.open_model import open_model
from leyden.data.label.sampling import sample_corpus
from leyden.data.stage import Corpus, Stage

if TYPE_CHECKING:
    from leyden.core.page import Plot

SCALES = ("knowledge", "helpfulness")


class Quality(Stage):
    """Set the scores ``knowledge`` and ``helpfulness`` (0 to 5), ``category`` in the metadata, and the score
    ``category_confidence``, the probability of that category. Drops nothing: that is for the mixture to weigh.

    Which documents the judge sees is decided by their content. Its answers are kept (``answers``), so that it is asked
    nothing twice. ``labels.jsonl`` in the stage's work holds its labels.
    """

    WHOLE_CORPUS: ClassVar[bool] = True

    kind: Literal["quality"] = "quality"
    model: ModelSettings
    """The model that judges."""
    sample: int = Field(default=4000, ge=2)
    """Documents that it labels."""
    categories: tuple[str, ...] = CATEGORIES
    """It chooses among."""
    characters: int = Field(default=6000, ge=100)
    """Of a document that it is shown: the beginning, and of longer ones pieces from the middle and the end."""
    max_tokens: int = Field(default=512, ge=16)
    """Of an answer, which a model may begin with its thoughts."""
    attempts: int = Field(default=3, ge=1)
    """Times that it is asked for a document, while its answers are malformed."""
    max_malformed: float = Field(default=0.2, ge=0, lt=1)
    """Share of documents that may be left without a label; beyond it the build stops."""
    asked_twice: float = Field(default=0.1, ge=0, le=1)
    """Share that is asked again, with scales and categories in reverse order: how far the judge agrees with itself."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of the labels that the classifier does not learn from: how far it agrees with the judge."""
    classifier: FastTextSettings = FastTextSettings()
    """How it is trained."""
    answers: Path | None = None
    """A folder for the judge's answers that other builds may share. None: beside the stage's work, where they outlive a
    change of its settings."""

    @field_validator("categories")
    @classmethod
    def _distinct(cls, categories: tuple[str, ...]) -> tuple[str, ...]:
        names = [category.strip().casefold() for category in categories]
        if len(names) < 2 or "" in names or len(set(names)) < len(names):
            raise ValueError("give at least two categories, none of them empty, that differ in more than case")
        return categories

    def files(self) -> tuple[Path, ...]:
        """A local judge."""
        return self.model.files()

    def prepare(self, corpus: Corpus) -> None:
        """Sample, ask, train, compare."""
        ids, texts = sample_corpus(corpus, self.sample, "judge")
        model = open_model(self.model, corpus.open_model)
        asking = Asking(self._request, self.categories, self.attempts)
        with Answers(self.answers or corpus.work.parent / "answers") as answers:
            labels, facts = label_sample(
                ids, texts, asking, model, answers, twice=self.asked_twice, held_out=self.held_out
            )
        check_malformed(facts, self.max_malformed)
        write_labels(corpus.work / "labels.jsonl", labels)
        both = [(one, text) for one, text in zip(labels, texts, strict=True) if one]
        self._train([pair for pair in both if pair[0].part == "train"], corpus.work)
        agreement = self._compare([pair for pair in both if pair[0].part == "held out"], corpus.work)
        with atomic_file(corpus.work / "report.json") as part:
            part.write_text(json.dumps({"judge": facts, "classifier": agreement}, ensure_ascii=False, indent=1))
        _tell(agreement)

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Score every document."""
        scores, chosen, sure = self._score(documents.texts(), work)
        for name in SCALES:
            documents = documents.score(name, scores[name])
        metadata = [
            json.dumps((json.loads(text) if text else {}) | {"category": category}, ensure_ascii=False)
            for text, category in zip(documents.column("metadata"), chosen, strict=True)
        ]
        return documents.with_column("metadata", metadata).score("category_confidence", sure)

    def report(self, work: Path) -> dict[str, Any]:
        """How many labels, how far the judge agrees with itself and the classifier with the judge (held out)."""
        return json.loads((work / "report.json").read_text())

    def plots(self, work: Path) -> "list[Plot]":
        """Calibration of the two scores."""
        from leyden.core.page import ACCENT, MUTED, Plot, drawing

        plots = []
        for name in SCALES:
            bins = self.report(work)["classifier"][name]["calibration"]
            with drawing(f"calibration-{name}") as drawn:
                drawn.axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.8)
                drawn.axes.plot([b["scored"] for b in bins], [b["judged"] for b in bins], "o-", color=ACCENT)
                drawn.axes.set_xlabel("classifier")
                drawn.axes.set_ylabel("judge")
            title = f"Calibration: {name}"
            plots.append(
                Plot(title, drawn.svg, "means over fifths of the held-out documents, by the classifier's score")
            )
        return plots

    def _request(self, text: str, seed: int) -> Any:
        return judge_request(text, self.categories, self.characters, self.max_tokens, seed)

    def _train(self, both: Sequence[tuple[Labelled, str]], work: Path) -> None:
        """One classifier for each dimension; the sample's order, by hash, is a shuffled one."""
        texts = [text for _, text in both]
        for name in (*SCALES, "category"):
            train(work / f"{name}.bin", texts, [self._class(one.label, name) for one, _ in both], self.classifier)

    def _class(self, label: Label, name: str) -> str:
        """The class of a label in one dimension, without spaces."""
        value = getattr(label, name)
        return str(self.categories.index(value) if name == "category" else round(value))

    def _score(self, texts: Sequence[str], work: Path) -> tuple[dict[str, np.ndarray], list[str], np.ndarray]:
        """For each text: expected scores, by name; the likeliest category; and its probability."""
        scores = {}
        for name in SCALES:
            labels, probabilities = classify(work / f"{name}.bin", texts, self.classifier)
            scores[name] = probabilities @ np.array(labels, float)
        labels, probabilities = classify(work / "category.bin", texts, self.classifier)
        chosen = [self.categories[int(labels[column])] for column in probabilities.argmax(axis=1).tolist()]
        return scores, chosen, probabilities.max(axis=1)

    def _compare(self, both: Sequence[tuple[Labelled, str]], work: Path) -> dict[str, Any]:
        """Agreement with the judge."""
        scores, chosen, _ = self._score([text for _, text in both], work)
        facts: dict[str, Any] = {
            name: on_scale(np.array([getattr(one.label, name) for one, _ in both], float), scores[name])
            for name in SCALES
        }
        facts["category"] = on_categories([one.label.category for one, _ in both], chosen)
        return facts


def _tell(agreement: dict[str, Any]) -> None:
    parts = []
    for name in SCALES:
        value = agreement[name]["spearman"]
        parts.append(f"{name} Spearman {'undefined' if value is None else f'{value:.2f}'}")
    category = agreement["category"]
    say(
        f"quality: on {category['documents']} held-out documents the classifier agrees with the judge: "
        f"{', '.join(parts)}, category {category['accuracy']:.0%} (the commonest alone: "
        f"{category['accuracy_of_commonest']:.0%})"
    )
