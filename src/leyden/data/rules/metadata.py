"""What the source says of a document beside its text: a licence, a score, a number of stars."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from leyden.data.documents import Documents
from leyden.data.rules.base import RuleStage, empty_verdicts


class Metadata(RuleStage):
    """Drop documents by a value in their metadata: columns of a table, beside the text, that their source kept.

    A value that is a list is judged by its items: one that is allowed is enough, and one that is excluded is too many.
    """

    TITLE: ClassVar[str] = "metadata"
    kind: Literal["metadata"] = "metadata"

    key: str = Field(min_length=1)
    """The name of the value: that of its column."""
    values: tuple[str, ...] = ()
    """Values that are allowed; a number or truth value as JSON writes it (``3``, ``true``). Empty: all."""
    except_values: tuple[str, ...] = ()
    """Values that are excluded."""
    least: float | None = None
    """Documents with a smaller number are dropped."""
    most: float | None = None
    """Documents with a larger number are dropped."""
    missing: Literal["keep", "drop"] = "keep"
    """What becomes of documents without such a value, or without a number where ``least`` or ``most`` is given."""

    @model_validator(mode="after")
    def _judges(self) -> Self:
        if not (self.values or self.except_values) and self.least is None and self.most is None:
            raise ValueError("give values, except_values, least or most; without one of them nothing is judged")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"least ({self.least:g}) is larger than most ({self.most:g}), so that nothing is allowed")
        return self

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Drop what has another value than is allowed; the detail says which."""
        reasons, details = empty_verdicts(len(documents))
        metadata = documents.column("metadata")
        for row in np.flatnonzero(self.chosen(documents)):
            fault = self._fault(json.loads(metadata[row] or "{}").get(self.key))
            if fault is not None:
                reasons[row], details[row] = f"{self.TITLE}: {self.key}", fault
        return documents.drop(reasons, details)

    def _fault(self, value: Any) -> str | None:
        """What is wrong with a value, in words; None: nothing."""
        items = [item for item in (value if isinstance(value, list) else [value]) if item is not None]
        if not items:
            return "there is none" if self.missing == "drop" else None
        written = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in items]
        excluded = [item for item in written if item in self.except_values]
        if excluded:
            return f"{excluded[0]} is excluded"
        if self.values and not any(item in self.values for item in written):
            return f"{', '.join(written)}; {', '.join(self.values)} is allowed"
        return self._number_fault(items)

    def _number_fault(self, items: list[Any]) -> str | None:
        if self.least is None and self.most is None:
            return None
        numbers = [item for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
        if not numbers:
            return "it is no number" if self.missing == "drop" else None
        least, most = -np.inf if self.least is None else self.least, np.inf if self.most is None else self.most
        if any(least <= number <= most for number in numbers):
            return None
        bounds = [f"at least {least:.10g}"] * (self.least is not None) + [f"at most {most:.10g}"] * (
            self.most is not None
        )
        return f"{', '.join(f'{number:.10g}' for number in numbers)}; {' and '.join(bounds)} is allowed"
