"""The judge's labels of a sample: asked, kept, counted, and compared with what the judge says when asked again."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import progress
from leyden.data.label.agreement import on_categories, on_scale
from leyden.data.label.answers import Answers, ask
from leyden.data.label.judge import Label, parse_label
from leyden.data.label.language_model import LanguageModel, ModelRequest
from leyden.data.label.sampling import draws

Part = Literal["train", "held out"]
_AT_ONCE = 256
"""Requests between two steps of the progress bar."""


@dataclass(frozen=True)
class Labelled:
    """A document of the sample that the judge has labelled.

    Attributes:
        id: of the document.
        label: the judgement.
        again: that of the second time, where it was asked twice.
        part: what it is used for.
    """

    id: str
    label: Label
    again: Label | None
    part: Part

    @classmethod
    def of_json(cls, line: str) -> Self:
        """From a line of ``labels.jsonl``."""
        data = json.loads(line)
        again = Label(**data["again"]) if data["again"] else None
        return cls(data["id"], Label(**data["label"]), again, data["part"])


@dataclass(frozen=True)
class Asking:
    """How documents are put to the judge.

    Attributes:
        request: makes the request of a text and a seed; an odd seed asks in another form.
        categories: that may be answered.
        attempts: times that a document is asked before its answers count as malformed.
    """

    request: Callable[[str, int], ModelRequest]
    categories: Sequence[str]
    attempts: int

    def labels(
        self, texts: Sequence[str], model: LanguageModel, answers: Answers, seed: int, title: str
    ) -> list[Label | str]:
        """[D] the judgement of each text, or what was wrong with the last answer.

        Args:
            seed: of the first attempt; each further one adds 2.
        """
        found: list[Label | str] = ["not answered"] * len(texts)
        open_rows = list(range(len(texts)))
        with progress(title, len(texts), "documents") as bar:
            for attempt in range(self.attempts):
                for start in range(0, len(open_rows), _AT_ONCE):
                    rows = open_rows[start : start + _AT_ONCE]
                    keys = ask(model, [self.request(texts[row], seed + 2 * attempt) for row in rows], answers)
                    for row, key in zip(rows, keys, strict=True):
                        answer = answers.get(key)
                        if answer is not None:
                            found[row] = parse_label(answer.text, self.categories)
                    if not attempt:
                        bar.advance(len(rows))
                open_rows = [row for row in open_rows if isinstance(found[row], str)]
        return found


def label_sample(
    ids: Sequence[str],
    texts: Sequence[str],
    asking: Asking,
    model: LanguageModel,
    answers: Answers,
    *,
    twice: float,
    held_out: float,
) -> tuple[list[Labelled | None], dict[str, Any]]:
    """Have a sample labelled.

    Args:
        ids, texts: [D].
        twice: share that is asked again in another form.
        held_out: share that is kept from training.

    Returns:
        [D] the labels, None where the judge gave none; and the counts and self-consistency for the report.
    """
    labels = asking.labels(texts, model, answers, 0, "asking the judge")
    chosen = np.flatnonzero(draws(list(texts), "asked twice") < twice).tolist()
    second = asking.labels([texts[row] for row in chosen], model, answers, 1, "asking the judge again")
    again = dict(zip(chosen, second, strict=True))
    good = [row for row, label in enumerate(labels) if isinstance(label, Label)]
    order = np.argsort(draws([texts[row] for row in good], "held out"), kind="stable")
    apart = {good[i] for i in order[: round(held_out * len(good))].tolist()}
    result: list[Labelled | None] = []
    for row, label in enumerate(labels):
        other = again.get(row)
        part: Part = "held out" if row in apart else "train"
        labelled = isinstance(label, Label)
        result.append(
            Labelled(ids[row], label, other if isinstance(other, Label) else None, part) if labelled else None
        )
    malformed = Counter(label for label in labels if isinstance(label, str))
    facts = {"model": model.identity, "asked": len(labels), "labelled": len(good), "malformed": dict(malformed)}
    facts["asked again"] = _consistency([one for one in result if one and one.again])
    return result, facts


def _consistency(pairs: Sequence[Labelled]) -> dict[str, Any]:
    """How far the judge agrees with itself."""
    first = [one.label for one in pairs]
    second = [one.again for one in pairs if one.again]
    facts: dict[str, Any] = {"documents": len(pairs)}
    if pairs:
        for name in ("knowledge", "helpfulness"):
            a, b = (np.array([getattr(label, name) for label in labels]) for labels in (first, second))
            both = on_scale(a, b)
            facts[name] = {"equal": float(np.mean(a == b)), **{key: both[key] for key in ("pearson", "spearman")}}
        both = on_categories([label.category for label in first], [label.category for label in second])
        facts["category"] = {"equal": both["accuracy"], "kappa": both["kappa"]}
    return facts


def check_malformed(facts: dict[str, Any], allowed: float) -> None:
    """Refuse to go on with a judge that does not do its work.

    Raises:
        UserError: more than ``allowed`` of its answers were of no use, or there are too few for a classifier.
    """
    asked, labelled = facts["asked"], facts["labelled"]
    if asked - labelled > allowed * asked:
        why = ", ".join(f"{count} {problem}" for problem, count in sorted(facts["malformed"].items()))
        raise UserError(
            f"The judge labelled {labelled} of {asked} documents ({why}); more than max_malformed = {allowed} are "
            "without a label. Take a more able model, raise max_tokens if its answers are cut off, or raise the share."
        )
    if labelled < 2:
        raise UserError(f"quality: {labelled} of {asked} documents have a label; a classifier needs more.")


def write_labels(path: Path, labels: Sequence[Labelled | None]) -> None:
    """``labels.jsonl``: one line a labelled document."""
    with atomic_file(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in labels if one)
