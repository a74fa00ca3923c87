"""The batch size of every step: one size, or sizes that change after stated numbers of tokens.

MiniMax-Text-01 begins with 16M tokens a step and doubles them after 69B, 790B and 4.7T tokens (arXiv 2501.08313,
section 4.3). A step takes more or fewer micro-batches, all of one size, so that neither the order of the data nor the
memory of a rank depends on the schedule.
"""

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

MicroBatches = Callable[[int], int]
"""How many micro-batches a step of a stage takes, by the step's number from 0."""


def one_batch(step: int) -> int:
    """One micro-batch, in every step."""
    return 1


class BatchChange(NamedTuple):
    """Where a batch size begins.

    Attributes:
        step: the first step that has it, from 0.
        tokens_before: tokens of all steps before that one.
        batch_tokens: the size.
    """

    step: int
    tokens_before: int
    batch_tokens: int


@dataclass(frozen=True)
class BatchSchedule:
    """How many tokens each step of a stage has.

    Attributes:
        marks: (tokens, batch_tokens) pairs. The first step that begins when so many tokens of the stage are behind it,
            or more, is the first of that size: a mark that falls into a step holds from the next step on. The first
            mark is at 0, and they rise.
        micro_batch_tokens: tokens of a micro-batch, of which each size is a multiple.

    Raises:
        ValueError: marks or sizes that cannot be.
    """

    marks: tuple[tuple[int, int], ...]
    micro_batch_tokens: int

    @classmethod
    def of(cls, batch_tokens: int | Iterable[tuple[int, int]], micro_batch_tokens: int) -> Self:
        """A size for all steps, or marks; micro-batches of ``micro_batch_tokens``, or of the smallest size if less."""
        marks = ((0, batch_tokens),) if isinstance(batch_tokens, int) else tuple(batch_tokens)
        return cls(marks, min([micro_batch_tokens, *(size for _, size in marks)]))

    def __post_init__(self) -> None:
        at = [mark for mark, _ in self.marks]
        if at[:1] != [0] or any(after <= before for before, after in itertools.pairwise(at)):
            raise ValueError(
                f"batch_tokens is a number, or pairs of tokens and a number, of which the first is at 0 tokens and the "
                f"others rise: [[0, 65536], [1e9, 131072]]; given marks at {at}"
            )
        for _, size in self.marks:
            lower = size // self.micro_batch_tokens * self.micro_batch_tokens
            if size != lower:
                raise ValueError(
                    f"batch_tokens ({size}) must be a multiple of micro_batch_tokens ({self.micro_batch_tokens}); the "
                    f"nearest are {lower} and {lower + self.micro_batch_tokens}"
                )

    @cached_property
    def changes(self) -> tuple[BatchChange, ...]:
        """Where each size begins, in order; a size whose mark lies in the same step as the next one's has no step."""
        found: list[BatchChange] = []
        for mark, size in self.marks:
            step = tokens = 0
            if found:
                before = found[-1]
                steps = max(0, -(-(mark - before.tokens_before) // before.batch_tokens))
                step, tokens = before.step + steps, before.tokens_before + steps * before.batch_tokens
                if not steps:
                    found.pop()
            found.append(BatchChange(step, tokens, size))
        return tuple(found)

    @property
    def fewest_micro_batches(self) -> int:
        """Of the smallest step."""
        return min(size for _, size in self.marks) // self.micro_batch_tokens

    @property
    def most_micro_batches(self) -> int:
        """Of the largest step."""
        return max(size for _, size in self.marks) // self.micro_batch_tokens

    def tokens_at(self, step: int) -> int:
        """Tokens of ``step``, from 0."""
        return self._change_at(step).batch_tokens

    def micro_batches_at(self, step: int) -> int:
        """Micro-batches of ``step``, from 0."""
        return self.tokens_at(step) // self.micro_batch_tokens

    def tokens_before(self, step: int) -> int:
        """Tokens of all steps before ``step``."""
        change = self._change_at(step)
        return change.tokens_before + (step - change.step) * change.batch_tokens

    def batches_before(self, step: int) -> int:
        """Micro-batches of all steps before ``step``."""
        return self.tokens_before(step) // self.micro_batch_tokens

    def steps_for(self, tokens: int) -> int:
        """The fewest steps that have ``tokens`` tokens together."""
        change = self.changes[max(0, bisect_right(self.changes, tokens, key=lambda c: c.tokens_before) - 1)]
        return change.step + -(-(tokens - change.tokens_before) // change.batch_tokens)

    def within(self, steps: int) -> Iterator[tuple[BatchChange, int]]:
        """Each size that ``steps`` steps come to, and how many of them have it."""
        ends = [*(change.step for change in self.changes[1:]), steps]
        for change, end in zip(self.changes, ends, strict=True):
            if change.step < steps:
                yield change, min(end, steps) - change.step

    def _change_at(self, step: int) -> BatchChange:
        return self.changes[bisect_right(self.changes, step, key=lambda change: change.step) - 1]
