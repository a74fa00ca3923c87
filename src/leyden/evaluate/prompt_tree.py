"""What prompts have in common: a tree whose paths are the prompts, so that a shared beginning is read once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

LEAST_SHARED_TOKENS = 16
"""A shorter beginning is not worth a copy of the state behind it for each prompt."""


@dataclass(eq=False)
class PromptSegment:
    """Tokens that follow each other in all prompts of a subtree.

    Attributes:
        tokens: [T] int64, at least one.
        start: how many tokens stand before them.
        parent: the segment before; None where a prompt begins.
        first, last: bounds, in the tree's order of prompts, of those that the segment is a part of.
        children: the segments that follow.
    """

    tokens: np.ndarray
    start: int
    parent: "PromptSegment | None"
    first: int
    last: int
    children: "list[PromptSegment]" = field(default_factory=list)

    @property
    def end(self) -> int:
        """How many tokens have been read behind it."""
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class PromptTree:
    """Prompts as paths through segments.

    Attributes:
        order: [N] int64, the prompts' indices in the order that the segments' bounds speak of.
        roots: the segments that begin prompts.
        num_tokens: of all segments.
    """

    order: np.ndarray
    roots: list[PromptSegment]
    num_tokens: int


def prompt_tree(prompts: Sequence[Sequence[int]], least: int = LEAST_SHARED_TOKENS) -> PromptTree:
    """Arrange prompts by what they begin with.

    Args:
        prompts: token ids, each at least one.
        least: a segment that is shared has at least so many tokens.
    """
    order = sorted(range(len(prompts)), key=lambda index: list(prompts[index]))
    texts = [np.asarray(prompts[index], np.int64) for index in order]
    common = [0, *(_common(one, other) for one, other in zip(texts, texts[1:], strict=False))]
    roots: list[PromptSegment] = []
    num_tokens = 0
    waiting: list[tuple[int, int, PromptSegment | None]] = [(0, len(texts), None)]
    while waiting:
        first, last, parent = waiting.pop()
        depth = 0 if parent is None else parent.end
        for begin, end in _runs(common, first, last, depth + least):
            shared = min(common[begin + 1 : end], default=len(texts[begin]))
            if shared == depth:
                continue  # the prompt ends with its parent
            segment = PromptSegment(texts[begin][depth:shared], depth, parent, begin, end)
            (roots if parent is None else parent.children).append(segment)
            num_tokens += len(segment.tokens)
            if end - begin > 1:
                waiting.append((begin, end, segment))
    return PromptTree(np.array(order, np.int64), roots, num_tokens)


def _runs(common: Sequence[int], first: int, last: int, least: int) -> list[tuple[int, int]]:
    """Bounds of the runs of neighbours between ``first`` and ``last`` that have ``least`` tokens in common."""
    starts = [first, *(place for place in range(first + 1, last) if common[place] < least)]
    return list(zip(starts, [*starts[1:], last], strict=True))


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with."""
    size = min(len(one), len(other))
    unlike = np.flatnonzero(one[:size] != other[:size])
    return int(unlike[0]) if len(unlike) else size
