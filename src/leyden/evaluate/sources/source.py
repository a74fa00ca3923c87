"""What the evaluation asks of a source of answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from leyden.evaluate.task import Answer, Question


@dataclass(frozen=True)
class ReadProgress:
    """How many tokens a source was asked to read, and how many it read.

    Attributes:
        prompt_tokens: of all prompts.
        read_tokens: without those that a prefix cache had; None where the source does not say.
    """

    prompt_tokens: int
    read_tokens: int | None

    def since(self, earlier: "ReadProgress") -> dict[str, Any]:
        """Both figures of the time since ``earlier``, and ``factor``: how much reading the cache saved."""
        prompts = self.prompt_tokens - earlier.prompt_tokens
        if self.read_tokens is None or earlier.read_tokens is None:
            return {"prompt_tokens": prompts, "read_tokens": None, "factor": None}
        read = self.read_tokens - earlier.read_tokens
        factor = round(prompts / read, 3) if read else None
        return {"prompt_tokens": prompts, "read_tokens": read, "factor": factor}


class Source(Protocol):
    """Answers questions; one evaluation uses it at a time."""

    identity: str
    """Tells this model from others: rows of another identity are not reused."""

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """The index and the answer of every question, in whatever order they come.

        Raises:
            UserError: a question that the model cannot take, or a source that does not answer. What has been yielded
                stands.
        """
        ...

    @property
    def reading(self) -> ReadProgress:
        """What was read so far."""
        ...
