"""Log-probabilities of the ends of many prompts, where what the prompts begin with is read once.

A question with four answers is four prompts that differ in their last words. The prompts are arranged as a tree
(:mod:`leyden.evaluate.prompt_tree`). Its segments are read together, as many as fill a forward pass, each from the
state, the keys and the values behind the segment before it; and only the rows that are asked for have logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from leyden.evaluate.prompt_tree import PromptSegment, PromptTree, prompt_tree
from leyden.model import PAGE, HybridLM, Pools
from leyden.serve.runner import Reading, Runner

_FORWARD_TOKENS = 8192
_LOGITS_BYTES = 1 << 28
"""Of one forward pass."""
_MEMORY_BYTES = 1 << 30
"""For states, keys and values of segments that others go on from; more where one path alone needs more."""


@dataclass(frozen=True)
class PromptScore:
    """What is known of the last tokens of a prompt.

    Attributes:
        nats: [tokens] float64, the negative log-probability of each.
        greedy: [tokens] bool, whether it was the most probable one.
    """

    nats: np.ndarray
    greedy: np.ndarray


def prompt_scores(
    model: HybridLM,
    prompts: Sequence[Sequence[int]],
    scored: Sequence[int],
    *,
    tree: PromptTree | None = None,
    forward_tokens: int = _FORWARD_TOKENS,
    memory_bytes: int = _MEMORY_BYTES,
) -> Iterator[tuple[int, PromptScore]]:
    """Score the last tokens of each prompt, given those before them.

    Args:
        model: any mode; it computes as in ``eval()``.
        prompts: token ids, at least two each, and no more than the model has positions.
        scored: of each prompt how many of its last tokens are scored, from 1 to all but the first.
        tree: of the prompts without their last tokens, where it is there already.
        forward_tokens: how many tokens one forward pass reads at most.
        memory_bytes: as much memory as this takes more at once; a single prompt may need more.

    Yields:
        A prompt's index and its score, once it is read; each prompt once.
    """
    if not prompts:
        return
    tree = tree or prompt_tree([prompt[:-1] for prompt in prompts])
    memory = _Memory(model, tree, memory_bytes)
    wanted = _Wanted(tree, prompts, scored)
    most_rows = max(1, _LOGITS_BYTES // (4 * model.config.vocab_size))
    runner = Runner(model, memory.pools)
    for parts in memory.passes(tree, wanted, forward_tokens, most_rows):
        readings = [memory.reading(part, wanted.rows(part)) for part in parts]
        with torch.inference_mode():
            done = wanted.take(parts, runner.run([], readings))
        yield from done


@dataclass(frozen=True)
class _Part:
    """Tokens of a segment that one forward pass reads: positions from ``start`` to ``stop``."""

    segment: PromptSegment
    start: int
    stop: int


class _Wanted:
    """Which tokens have to be scored, and what was found of them."""

    def __init__(self, tree: PromptTree, prompts: Sequence[Sequence[int]], scored: Sequence[int]) -> None:
        self._prompts = [prompts[index] for index in tree.order]
        self._order = tree.order
        self._ends = np.array([len(prompt) - 1 for prompt in self._prompts])
        self._firsts = self._ends - np.array([scored[index] for index in tree.order])
        self._found = [PromptScore(np.zeros(scored[index]), np.zeros(scored[index], bool)) for index in tree.order]

    def rows(self, part: _Part) -> int:
        """Of how many of a part's last tokens the logits are asked for."""
        first = self._firsts[part.segment.first : part.segment.last].min()
        return max(0, part.stop - max(part.start, int(first)))

    def take(self, parts: Sequence[_Part], logits: torch.Tensor) -> list[tuple[int, PromptScore]]:
        """Take over what the logits [rows of all parts, V] say, and give the prompts that are done."""
        rows, labels, places, row = [], [], [], 0
        done = []
        for part in parts:
            count = self.rows(part)
            begin = part.stop - count
            for number in range(part.segment.first, part.segment.last):
                first, end = int(self._firsts[number]), int(self._ends[number])
                start, stop = max(begin, first), min(part.stop, end)
                if start < stop:
                    rows.append(np.arange(row + start - begin, row + stop - begin))
                    labels.append(self._prompts[number][start + 1 : stop + 1])
                    places.append((number, start - first, stop - first))
                if part.start < end <= part.stop:
                    done.append(number)
            row += count
        if places:
            nats, greedy = _measured(logits, np.concatenate(rows), np.concatenate(labels))
            bounds = np.cumsum([0, *map(len, rows)])
            for (number, start, stop), a, b in zip(places, bounds, bounds[1:], strict=False):
                self._found[number].nats[start:stop] = nats[a:b]
                self._found[number].greedy[start:stop] = greedy[a:b]
        return [(int(self._order[number]), self._found[number]) for number in done]


def _measured(logits: torch.Tensor, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nats of each label, and whether it is the most probable token, by its row of the logits; [M] each."""
    at, label = (torch.from_numpy(x.astype(np.int64)).to(logits.device) for x in (rows, labels))
    nats = logits.logsumexp(-1)[at] - logits[at, label]
    greedy = logits.argmax(-1)[at] == label
    return nats.double().cpu().numpy(), greedy.cpu().numpy()


@dataclass
class _Held:
    """Where a segment that was begun lies.

    Attributes:
        slot: of its state.
        pages: of all tokens up to its end, those of the segments before it among them.
        own: those that are its alone.
        open: how many of its children have not been read to their ends.
    """

    slot: int
    pages: list[int]
    own: list[int]
    open: int


class _Memory:
    """Slots and pages of the segments whose subtrees are not read to the end.

    Segments are taken depth first, and never so many that one whole path would not fit beside them; so there is always
    one that can be read.
    """

    def __init__(self, model: HybridLM, tree: PromptTree, memory_bytes: int) -> None:
        slot_bytes, page_bytes = Pools.bytes_of(model.config, model.dtype)
        segments = list(_all(tree.roots))
        needs = _needs(segments)
        self._reserve = tuple(max(of[kind] for of in needs.values()) for kind in (0, 1))
        slots, pages = len(segments), sum(map(_num_pages, segments))
        num_slots = min(slots, max(2 * self._reserve[0], memory_bytes // 2 // max(1, slot_bytes)))
        num_pages = min(pages, max(2 * self._reserve[1], memory_bytes // 2 // max(1, page_bytes)))
        self.pools = Pools(model.config, num_slots, num_pages, dtype=model.dtype, device=model.norm.weight.device)
        self._slots, self._pages = list(range(num_slots)), list(range(num_pages))
        self._held: dict[PromptSegment, _Held] = {}

    def passes(self, tree: PromptTree, wanted: _Wanted, forward_tokens: int, most_rows: int) -> Iterator[list[_Part]]:
        """What each forward pass reads; what a segment needs of its parent lies there before."""
        ready = [_Part(segment, segment.start, segment.end) for segment in reversed(tree.roots)]
        while ready:
            parts: list[_Part] = []
            tokens = rows = 0
            while ready and tokens < forward_tokens and self._has_room(ready[-1].segment, first=not parts):
                whole = ready[-1]
                part = _Part(whole.segment, whole.start, min(whole.stop, whole.start + forward_tokens - tokens))
                part = _fewer_rows(part, wanted, most_rows)
                if parts and rows + wanted.rows(part) > most_rows:
                    break
                ready.pop()
                parts.append(part)
                tokens, rows = tokens + part.stop - part.start, rows + wanted.rows(part)
                self._hold(part.segment)
                if part.stop < whole.stop:
                    break
            self._copy([part.segment for part in parts if part.start == part.segment.start])
            yield parts
            for part in reversed(parts):
                segment = part.segment
                if part.stop < segment.end:
                    ready.append(_Part(segment, part.stop, segment.end))
                else:
                    ready += [_Part(child, child.start, child.end) for child in reversed(segment.children)]
                    self._release(segment)

    def reading(self, part: _Part, wanted: int) -> Reading:
        """A part as the runner reads it."""
        held, segment = self._held[part.segment], part.segment
        tokens = segment.tokens[part.start - segment.start : part.stop - segment.start]
        return Reading(tokens.tolist(), part.start, held.pages[: -(-part.stop // PAGE)], [held.slot], wanted)

    def _has_room(self, segment: PromptSegment, *, first: bool) -> bool:
        free_slots, free_pages = len(self._slots) - 1, len(self._pages) - _num_pages(segment)
        return first or segment in self._held or (free_slots >= self._reserve[0] and free_pages >= self._reserve[1])

    def _hold(self, segment: PromptSegment) -> None:
        if segment in self._held:
            return
        own = [self._pages.pop() for _ in range(_num_pages(segment))]
        before = [] if segment.parent is None else self._held[segment.parent].pages[: segment.start // PAGE]
        self._held[segment] = _Held(self._slots.pop(), before + own, own, len(segment.children))

    @torch.inference_mode()
    def _copy(self, segments: Sequence[PromptSegment]) -> None:
        """Begin segments with what lies behind their parents."""
        following = [(self._held[one], self._held[one.parent], one.start) for one in segments if one.parent is not None]
        if not following:
            return
        to, of = [one.slot for one, _, _ in following], [parent.slot for _, parent, _ in following]
        for tensor in self.pools.slots.values():
            tensor[:, to] = tensor[:, of]
        torn = [(one.own[0], parent.pages[start // PAGE]) for one, parent, start in following if start % PAGE]
        if torn:
            to, of = [pair[0] for pair in torn], [pair[1] for pair in torn]
            for tensor in self.pools.pages.values():
                tensor[:, to] = tensor[:, of]

    def _release(self, segment: PromptSegment | None) -> None:
        """Give back what nobody goes on from any more: a segment that was read, and those before it."""
        while segment is not None and self._held[segment].open == 0:
            held = self._held.pop(segment)
            self._slots.append(held.slot)
            self._pages += held.own
            segment = segment.parent
            if segment is not None:
                self._held[segment].open -= 1


def _fewer_rows(part: _Part, wanted: _Wanted, most_rows: int) -> _Part:
    """As much of a part's beginning as asks for at most ``most_rows`` logits."""
    extra = wanted.rows(part) - most_rows
    return part if extra <= 0 else _Part(part.segment, part.start, part.stop - extra)


def _num_pages(segment: PromptSegment) -> int:
    """Pages of its own: from the one that its first token lies in."""
    return -(-segment.end // PAGE) - segment.start // PAGE


def _all(segments: Sequence[PromptSegment]) -> Iterator[PromptSegment]:
    """All of a forest, parents before their children."""
    waiting = list(segments)
    while waiting:
        segment = waiting.pop()
        yield segment
        waiting += segment.children


def _needs(segments: Sequence[PromptSegment]) -> dict[PromptSegment, tuple[int, int]]:
    """Slots and pages that the longest path below each segment takes, its own among them."""
    needs: dict[PromptSegment, tuple[int, int]] = {}
    for segment in reversed(segments):
        below = [needs[child] for child in segment.children]
        slots, pages = (max((of[kind] for of in below), default=0) for kind in (0, 1))
        needs[segment] = slots + 1, pages + _num_pages(segment)
    return needs
