"""The stage ``classifier``: how like good examples a document is, and unlike others, as DCLM chose its pool.

DCLM (arXiv 2406.11794, section 4.4) trained fastText to tell instruction data and well-voted answers from web pages at
random, and kept the tenth that scored highest.
"""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import say
from leyden.data.documents import Documents, Reject
from leyden.data.label.agreement import area_under_curve
from leyden.data.label.fast_text import FastTextSettings, classify, train
from leyden.data.label.kept_scores import kept_scores, score_corpus
from leyden.data.label.sampling import draws, sample_corpus
from leyden.data.stage import Corpus, Stage

if TYPE_CHECKING:
    from leyden.core.page import Plot

_MODEL = "classifier.bin"


class Classifier(Stage):
    """Score each document with the probability that it is a positive; drop those that score low, if asked.

    Of equal examples one is used; an example that is on both sides is used on neither. Their order does not matter.
    """

    VERSION: ClassVar[int] = 2
    WHOLE_CORPUS: ClassVar[bool] = True

    kind: Literal["classifier"] = "classifier"
    positives: tuple[Path, ...] = Field(min_length=1)
    """Files and folders of documents like those that are wanted."""
    negatives: tuple[Path, ...] = ()
    """Of others. Empty: a sample of the corpus itself, as many as there are positives, as DCLM's were of the web."""
    score: str = Field(default="classifier", min_length=1)
    """The score's name."""
    min_score: float | None = Field(default=None, ge=0, le=1)
    """Drop documents that score less."""
    keep: float | None = Field(default=None, gt=0, le=1)
    """Keep this share of the documents, those that score highest (DCLM: 0.1), and any that equal the last of them."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of the examples that are not trained on, but tell the area under the curve."""
    classifier: FastTextSettings = FastTextSettings()
    """How it is trained."""

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if self.min_score is not None and self.keep is not None:
            raise ValueError("give min_score or keep, not both")
        return self

    def files(self) -> tuple[Path, ...]:
        """The examples."""
        return self.positives + self.negatives

    def prepare(self, corpus: Corpus) -> None:
        """Train, compare with examples held out, and, where a share is kept, score the corpus to find the cut."""
        positive = _read(self.positives, "positives")
        if self.negatives:
            negative = _read(self.negatives, "negatives")
        else:
            negative = set(sample_corpus(corpus, len(positive), "negatives")[1])
        facts = self._train(positive - negative, negative - positive, corpus.work)
        facts["on both sides"] = len(positive & negative)
        cut = self.min_score
        if self.keep is not None:
            scores = score_corpus(corpus, partial(self._score, work=corpus.work), "scoring")
            cut = float(scores[len(scores) - max(round(self.keep * len(scores)), 1)]) if len(scores) else None
        with atomic_file(corpus.work / "report.json") as part:
            part.write_text(json.dumps({**facts, "cut": cut}, indent=1))
        curve = facts["area_under_curve"]
        say(f"classifier: area under the curve {curve:.4f} on {facts['held_out']} held-out examples")

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Score, then drop what is below the cut."""
        if self.keep is None:
            scores = self._score(documents, work)
        else:
            scores = kept_scores(work, shard, documents)
        scored = documents.score(self.score, scores)
        cut = json.loads((work / "report.json").read_text())["cut"]
        if cut is None:
            return scored
        low = scores < cut
        details = [f"{self.score} {value:.4g}; at least {cut:.4g} is kept" for value in scores]
        return scored.drop([f"{self.kind}: low {self.score}" if yes else None for yes in low], details)

    def report(self, work: Path) -> dict[str, Any]:
        """Examples, area under the curve (held out), and the cut."""
        return {key: value for key, value in json.loads((work / "report.json").read_text()).items() if key != "bins"}

    def plots(self, work: Path) -> "list[Plot]":
        """How held-out examples score."""
        from leyden.core.page import ACCENT, MUTED, Plot, drawing

        bins = json.loads((work / "report.json").read_text())["bins"]
        middles = (np.arange(len(bins["positive"])) + 0.5) / len(bins["positive"])
        with drawing(f"classifier-{self.score}") as drawn:
            for side, color in (("negative", MUTED), ("positive", ACCENT)):
                drawn.axes.bar(middles, bins[side], width=1 / len(middles), color=color, alpha=0.6)
            drawn.axes.set_xlabel(self.score)
            drawn.axes.set_ylabel("examples")
        return [Plot("Held-out examples, negative (grey) and positive", drawn.svg)]

    def _score(self, documents: Documents, work: Path) -> np.ndarray:
        """[D] float64, the probability of a positive."""
        labels, probabilities = classify(work / _MODEL, documents.texts(), self.classifier)
        return probabilities[:, labels.index("positive")]

    def _train(self, positive: set[str], negative: set[str], work: Path) -> dict[str, Any]:
        """Train on examples in the order of their hashes; how those scored that were held out."""
        trained, apart = [], {}
        for label, texts in (("positive", positive), ("negative", negative)):
            shuffled = _by_draw(texts)
            count = max(round(self.held_out * len(shuffled)), 1)
            if len(shuffled) <= count:
                raise UserError(
                    f"classifier: {len(shuffled)} {label} examples are left (of equal texts one, and none that is on "
                    "both sides); give more."
                )
            apart[label] = shuffled[:count]
            trained += [(text, label) for text in shuffled[count:]]
        order = np.argsort(draws([text for text, _ in trained], "order"), kind="stable")
        texts, labels = zip(*(trained[i] for i in order.tolist()), strict=True)
        train(work / _MODEL, texts, labels, self.classifier)
        scored = {}
        for label, texts in apart.items():
            names, probabilities = classify(work / _MODEL, texts, self.classifier)
            scored[label] = probabilities[:, names.index("positive")]
        return {
            "positives": len(positive),
            "negatives": len(negative),
            "held_out": sum(map(len, apart.values())),
            "area_under_curve": area_under_curve(scored["positive"], scored["negative"]),
            "bins": {side: np.histogram(values, 20, (0, 1))[0].tolist() for side, values in scored.items()},
        }


def _read(paths: Iterable[Path], name: str) -> set[str]:
    """The texts of files.

    Raises:
        UserError: there is none.
    """
    from leyden.data.readers import read_documents

    rejects: list[Reject] = []
    texts = {document.text for document in read_documents(paths, rejects) if document.text.strip()}
    if not texts:
        raise UserError(f"classifier.{name}: no document with text in {', '.join(map(str, paths))}.")
    if rejects:
        say(f"classifier.{name}: {len(rejects)} set aside, the first: {rejects[0]}")
    return texts


def _by_draw(texts: Iterable[str]) -> list[str]:
    ordered = sorted(texts)
    return [ordered[i] for i in np.argsort(draws(ordered, "held out"), kind="stable").tolist()]
