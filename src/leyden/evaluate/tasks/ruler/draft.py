"""What a subtask of RULER makes of a draw, before the length of the prompt is known."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from leyden.evaluate.haystack import Haystack
from leyden.evaluate.pieces import Pieces
from leyden.tokenizer import Tokenizer

_BLOCK = 1 << 15
"""Words that are tokenised in one text."""


@dataclass(frozen=True)
class Draft:
    """A prompt whose context is still to be made.

    Attributes:
        head: what stands before the context.
        tail: the question.
        begun: the beginning of the answer, which a chat leaves out.
        least_tokens: of a context.
        fill: makes a context of at most so many tokens (int32), and the texts that a right answer holds.
        depth: how much of the context other prompts of the subtask and length share, in percent, about.
    """

    head: str
    tail: str
    begun: str
    least_tokens: int
    fill: Callable[[int], tuple[np.ndarray, tuple[str, ...]]]
    depth: float = 0.0


@dataclass(frozen=True)
class Sample:
    """Which prompt is to be made.

    Attributes:
        number: from 0, of this subtask and length.
        length: tokens of the prompt and its answer.
        draws: of this prompt alone.
    """

    number: int
    length: int
    draws: random.Random


@dataclass(frozen=True)
class Materials:
    """What prompts are made from.

    Attributes:
        tokenizer: of the model.
        haystack: takes the place of the authors' essays.
        seed: of what all samples share.
        streams: endless texts by their name, tokenised once for all samples and lengths.
        kept: tokens of lists by their name, likewise.
    """

    tokenizer: Tokenizer
    haystack: Haystack
    seed: int
    streams: dict[str, Pieces[str]] = field(default_factory=dict)
    kept: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def stream(self, name: str, source: Callable[[random.Random], Iterator[str]]) -> Pieces[str]:
        """The stream of this name; ``source`` makes its iterator where there is none yet."""
        if name not in self.streams:
            draws = random.Random(f"ruler {self.seed} {name}")
            self.streams[name] = Pieces(self.tokenizer, source(draws), str)
        return self.streams[name]

    def keep(self, name: str, texts: Callable[[], Sequence[str]]) -> list[np.ndarray]:
        """The tokens of a list of this name; ``texts`` makes it where it was not tokenised yet."""
        if name not in self.kept:
            self.kept[name] = self.tokenizer.encode_batch(texts())
        return self.kept[name]

    def keep_spaced(self, name: str, words: Callable[[], Sequence[str]]) -> list[np.ndarray]:
        """As :meth:`keep`, of words that each have a space before them."""
        if name not in self.kept:
            self.kept[name] = self.encode_spaced(words())
        return self.kept[name]

    def encode(self, *texts: str) -> list[np.ndarray]:
        """The tokens of each text, int32."""
        return self.tokenizer.encode_batch(texts)

    def encode_spaced(self, words: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each word with a space before it: of many in one text, which is much faster than one by one."""
        blocks = [words[start : start + _BLOCK] for start in range(0, len(words), _BLOCK)]
        found: list[np.ndarray] = []
        for block, ids in zip(blocks, self.encode(*(f" {' '.join(block)}" for block in blocks)), strict=True):
            known, places = np.unique(ids, return_inverse=True)
            begins = np.array([self.tokenizer.token_bytes(int(token)).startswith(b" ") for token in known])[places]
            parts = np.split(ids, np.flatnonzero(begins)[1:])
            # A tokenizer may join words; these are then encoded one by one.
            found += parts if len(parts) == len(block) else self.encode(*(f" {word}" for word in block))
        return found


def put_between(hay: list[np.ndarray], pieces: list[np.ndarray], places: list[int]) -> np.ndarray:
    """``hay`` in one row, with each of ``pieces`` before the part of ``hay`` that its place names; places ascend."""
    parts, done = [], 0
    for place, piece in zip(places, pieces, strict=True):
        parts += [*hay[done:place], piece]
        done = place
    return np.concatenate([*parts, *hay[done:]])
