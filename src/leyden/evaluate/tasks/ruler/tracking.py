"""RULER's variable tracking: a chain of assignments stands in a text, and all variables of its value are asked for."""

import random
import string

import numpy as np

from leyden.evaluate.tasks.ruler.draft import Draft, Materials, Sample, put_between
from leyden.evaluate.tasks.ruler.needles import NOISE

_HOPS = 4
_LETTERS, _EXAMPLE_LETTERS = 5, 3
_EXAMPLE_TOKENS = 500


def draft_tracking(materials: Materials, sample: Sample) -> Draft:
    """One chain of four hops in repeated sentences, behind a solved example that all samples share."""
    chain = _Chain(materials, sample.draws, _LETTERS)
    example = _Chain(materials, random.Random(f"ruler {materials.seed} vt example"), _EXAMPLE_LETTERS)
    frame = len(
        materials.tokenizer.encode(f"{example.head}{example.tail}{example.begun} {' '.join(example.names)}\n\n")
    )
    context = example.fill(max(example.tokens, _EXAMPLE_TOKENS - frame))
    shown = (
        f"{example.head}{materials.tokenizer.decode(context)}{example.tail}{example.begun} {' '.join(example.names)}"
    )
    return Draft(
        head=f"{shown}\n\n{chain.head}",
        tail=chain.tail,
        begun=chain.begun,
        least_tokens=chain.tokens + 1,
        fill=lambda room: (chain.fill(room), chain.names),
        depth=100 * chain.places[0],
    )


class _Chain:
    """``VAR A = 12345``, ``VAR B = VAR A``, ...: a line each, in order, at any places of the context."""

    def __init__(self, materials: Materials, draws: random.Random, letters: int) -> None:
        names: dict[str, None] = {}
        while len(names) < _HOPS + 1:
            names["".join(draws.choices(string.ascii_uppercase, k=letters))] = None
        self.names = tuple(names)
        value = draws.randrange(10_000, 100_000)
        givers = [str(value), *(f"VAR {name}" for name in self.names)]
        lines = [f"VAR {name} = {giver}\n" for name, giver in zip(self.names, givers, strict=False)]
        self._lines, self._noise = materials.encode(*lines), materials.encode(NOISE)[0]
        self.tokens = sum(map(len, self._lines))
        self.places = sorted(draws.random() for _ in lines)
        self.head = "Assignments to variables are spread over the text below. Keep track of their values.\n\n"
        self.tail = f"Question: Which variables have the value {value} by the end of the text?"
        self.begun = f" Answer: By the assignments in the text, {_HOPS + 1} variables have the value {value}. They are:"

    def fill(self, room: int) -> np.ndarray:
        """The lines in repeated sentences, in at most ``room`` tokens."""
        count = max(0, room - self.tokens) // len(self._noise)
        return put_between([self._noise] * count, self._lines, [round(place * count) for place in self.places])
