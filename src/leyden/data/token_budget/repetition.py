"""The stage ``match_repetition``: a small run on documents that repeat as often as they will in the full one.

A full run that takes ``full`` tokens of a source with ``unique`` tokens repeats it ``full / unique`` times. A trial run
on a hundredth of the tokens would repeat nothing, and judge data by another thing than what becomes of it. So, after
global deduplication, documents are left out until the trial's tokens repeat what is left equally often (arXiv
2501.08313, section 4.1.3).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.data.documents import Documents
from leyden.data.stage import Corpus, Stage
from leyden.data.token_budget.content import ContentColumns, contents_of, cut_at, gather_contents, repeats

MATCHED = "matched.json"
"""In the stage's work: a :class:`Matched` for every source."""


@dataclass(frozen=True)
class Matched:
    """How a trial run repeats one source, beside the full run; tokens are the bytes over ``bytes_per_token``.

    Attributes:
        cut: documents that draw less than it stay.
        unique_tokens, kept_tokens: of all documents, and of those that stay.
        full_tokens, trial_tokens: what each run takes.
        asked_epochs: how often the full run uses a document that it uses.
        achieved_epochs: how often the trial uses one that stays: ``trial_tokens / kept_tokens``.
        asked_frequencies: documents of the full run by how often it uses them, those it does not use left out.
        achieved_frequencies: documents that stay by how often the trial uses them.
    """

    cut: float
    unique_tokens: float
    kept_tokens: float
    full_tokens: float
    trial_tokens: float
    asked_epochs: float
    achieved_epochs: float
    asked_frequencies: dict[str, int]
    achieved_frequencies: dict[str, int]


class MatchRepetition(Stage):
    """Leave documents out so that a trial run repeats the others as often as the full run will.

    The content of a document decides whether it stays, so a smaller trial's documents lie within a larger one's.
    """

    WHOLE_CORPUS: ClassVar[bool] = True

    kind: Literal["match_repetition"] = "match_repetition"
    full_tokens: int = Field(ge=1)
    """Of the full run."""
    trial_tokens: int = Field(ge=1)
    """Of the run that the documents are for."""
    bytes_per_token: float = Field(default=4.0, gt=0)
    """UTF-8 bytes that a token stands for."""
    full_shares: dict[str, float] | None = None
    """Of the full run's tokens, by source; scaled to sum to 1. None: each as much as it has of the documents."""
    trial_shares: dict[str, float] | None = None
    """Of the trial's, as in the paper's 20B of the web and 20B of what is tested. None: the full run's."""
    category: str | None = None
    """Key of a category in the metadata that stands for the source. None: the source itself."""

    @model_validator(mode="after")
    def _is_smaller(self) -> Self:
        if self.trial_tokens > self.full_tokens:
            raise ValueError(
                f"the trial ({self.trial_tokens:,} tokens) must not exceed the full run ({self.full_tokens:,})"
            )
        return self

    def prepare(self, corpus: Corpus) -> None:
        """See what there is, and choose.

        Raises:
            UserError: documents of equal text, a source without a share, or a trial that takes more of one than the
                full run does.
        """
        contents = gather_contents(corpus, (), self.category)
        _refuse_duplicates(contents)
        matched = self.match(contents)
        with atomic_file(corpus.work / MATCHED) as part:
            record = {name: asdict(one) for name, one in matched.items()}
            part.write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")

    def match(self, contents: ContentColumns) -> dict[str, Matched]:
        """The choice, by source."""
        names = np.unique(contents.categories).tolist()
        sizes = {name: float(contents.num_bytes[contents.categories == name].sum()) for name in names}
        full = _shares(sizes, self.full_shares, "full_shares")
        trial = _shares(sizes, self.trial_shares or full, "trial_shares")
        return {
            name: match_source(
                contents.draws[contents.categories == name],
                contents.num_bytes[contents.categories == name] / self.bytes_per_token,
                full_tokens=self.full_tokens * full[name],
                trial_tokens=self.trial_tokens * trial[name],
                name=name,
            )
            for name in names
        }

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Drop what is left out."""
        cuts = {name: one["cut"] for name, one in json.loads((work / MATCHED).read_text(encoding="utf-8")).items()}
        contents = contents_of(documents, (), self.category)
        limits = np.array([cuts[name] for name in contents.categories.tolist()])
        out = contents.draws >= limits
        reasons = ["left out to match repetition" if one else None for one in out.tolist()]
        details = [
            f"it drew {draw:.4f}, the cut is {cut:.4f}" for draw, cut in zip(contents.draws, limits, strict=True)
        ]
        return documents.drop(reasons, details)

    def report(self, work: Path) -> dict[str, object]:
        """Achieved beside asked, by source."""
        return json.loads((work / MATCHED).read_text(encoding="utf-8"))


def match_source(
    draws: np.ndarray, tokens: np.ndarray, *, full_tokens: float, trial_tokens: float, name: str = "the source"
) -> Matched:
    """Choose documents of one source.

    A full run that takes less than there is uses some documents once and others not at all; a document of it repeats
    once, and so must the trial's.

    Args:
        draws: [D] in [0, 1).
        tokens: [D] of each document.
        full_tokens, trial_tokens: what the runs take of the source.
        name: of the source, for errors.

    Raises:
        UserError: the trial takes more than the full run.
    """
    unique = float(tokens.sum())
    if trial_tokens > full_tokens * (1 + 1e-9):
        raise UserError(
            f"the trial takes {trial_tokens:,.0f} tokens of '{name}', the full run {full_tokens:,.0f}: it would repeat "
            "documents more often than the full run. Lower trial_tokens or its share in trial_shares."
        )
    epochs = full_tokens / unique
    asked = max(1.0, epochs)
    cut = cut_at(draws, tokens, trial_tokens / asked / unique)
    kept = draws < cut
    if not kept.any():
        raise UserError(
            f"{trial_tokens:,.0f} tokens of '{name}', repeated {asked:.3g} times, are less than one document; raise "
            "trial_tokens."
        )
    kept_tokens = float(tokens[kept].sum())
    return Matched(
        cut=cut,
        unique_tokens=unique,
        kept_tokens=kept_tokens,
        full_tokens=full_tokens,
        trial_tokens=trial_tokens,
        asked_epochs=asked,
        achieved_epochs=trial_tokens / kept_tokens,
        asked_frequencies=_frequencies(draws, tokens, epochs),
        achieved_frequencies=_frequencies(draws[kept], tokens[kept], trial_tokens / kept_tokens),
    )


def _frequencies(draws: np.ndarray, tokens: np.ndarray, epochs: float) -> dict[str, int]:
    """How many documents are used how often: all ``floor(epochs)`` times, and some, to half a document, once more."""
    cut = cut_at(draws, tokens, epochs % 1) if epochs % 1 else 0.0
    times = repeats(draws, epochs, cut)
    return {str(n): int(np.sum(times == n)) for n in np.unique(times).tolist() if n}


def _shares(sizes: Mapping[str, float], given: Mapping[str, float] | None, setting: str) -> dict[str, float]:
    shares = sizes if given is None else given
    missing, unknown = sorted(set(sizes) - set(shares)), sorted(set(shares) - set(sizes))
    if missing or unknown or min(shares.values()) <= 0:
        raise UserError(
            f"{setting} must give every source a positive share; without one: {missing or 'none'}, not there: "
            f"{unknown or 'none'}."
        )
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def _refuse_duplicates(contents: ContentColumns) -> None:
    """Documents of equal text draw equal numbers; kept or left out together, they repeat more than they should."""
    twice = len(contents) - len(np.unique(contents.draws))
    if twice:
        raise UserError(
            f"{twice:,} documents have the text of another, so what repeats how often is not known; put a stage of "
            'kind = "exact" before this one.'
        )
