"""RULER's eight needle tasks: sentences that give a key a value, hidden in a text, and a question for some of them."""

import random
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import numpy as np

from leyden.evaluate.tasks.ruler.draft import Draft, Materials, Sample, put_between
from leyden.evaluate.tasks.ruler.words import ADJECTIVES, NOUNS

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
_DEPTHS = tuple(round(100 * place / 39) for place in range(40))
_DIGITS = 7

Hay = Literal["noise", "essay", "needle"]


def draft_needles(
    materials: Materials,
    sample: Sample,
    *,
    hay: Hay,
    keys: Literal["words", "uuids"] = "words",
    values: Literal["numbers", "uuids"] = "numbers",
    num_keys: int = 1,
    num_values: int = 1,
    num_queries: int = 1,
) -> Draft:
    """A prompt with ``num_keys`` keys of ``num_values`` values each, ``num_queries`` of them asked for.

    Args:
        materials: what prompts are made from.
        sample: which prompt.
        hay: repeated sentences, the haystack, or other needles of the same form.
        keys: what keys are.
        values: what values are.
        num_keys: how many keys are hidden.
        num_values: of each key.
        num_queries: how many keys are asked for; all their values count.
    """
    draws = sample.draws
    hidden: dict[str, list[str]] = {}
    while len(hidden) < num_keys:
        hidden[_key(draws, keys, 0)] = [_value(draws, values) for _ in range(num_values)]
    needles = [sentence(values, key, value) for key, given in hidden.items() for value in given]
    draws.shuffle(needles)
    asked = draws.sample(list(hidden), num_queries)
    expected = tuple(value for key in asked for value in hidden[key])
    many, what = num_queries * num_values > 1, values if num_queries * num_values > 1 else values[:-1]
    named = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    some, be = ("Some", "are") if many else ("A", "is")
    places = _places(draws, hay, len(needles))
    # In the haystack a needle stands on a line of its own.
    pieces = materials.encode(*(f"\n{needle}\n" if hay == "essay" else f"{needle}\n" for needle in needles))
    fill = _FILLS[hay] if hay != "needle" else partial(_among_needles, keys=keys, values=values)
    return Draft(
        head=f"{some} special magic {what} {be} stated somewhere in the text below. Remember the {what}: a question "
        "about it comes at the end.\n",
        tail=f"{'' if hay != 'essay' else chr(10)}Which {'are all' if many else 'is'} the special magic {what} that "
        f"the text states for {named}?",
        begun=f" The special magic {what} that the text states for {named} {be}",
        least_tokens=sum(map(len, pieces)) + 1,
        fill=lambda room: (fill(materials, room - sum(map(len, pieces)), pieces, places), expected),
        depth=100 * places[0],
    )


def sentence(what: str, key: str, value: str) -> str:
    """A needle."""
    return f"One of the special magic {what} for {key} is: {value}."


def _key(draws: random.Random, kind: str, parity: int) -> str:
    """A key; those of the hay are of another parity, so that they are other keys."""
    if kind == "uuids":
        return _uuid(draws)
    first, second = draws.randrange(len(ADJECTIVES)), draws.randrange(len(NOUNS) // 2)
    return f"{ADJECTIVES[first]}-{NOUNS[2 * second + (first + parity) % 2]}"


def _value(draws: random.Random, kind: str) -> str:
    return _uuid(draws) if kind == "uuids" else str(draws.randrange(10 ** (_DIGITS - 1), 10**_DIGITS))


def _uuid(draws: random.Random) -> str:
    return str(uuid.UUID(int=draws.getrandbits(128), version=4))


def _places(draws: random.Random, hay: Hay, count: int) -> list[float]:
    """Where needles stand, ascending, as shares of the hay: among the authors' 40 depths, or anywhere."""
    if hay == "essay":
        return sorted(depth / 100 for depth in draws.sample(_DEPTHS, count))
    return sorted(draws.random() for _ in range(count))


def _in_noise(materials: Materials, room: int, pieces: list[np.ndarray], places: list[float]) -> np.ndarray:
    (line,) = materials.encode(NOISE)
    count = room // len(line)
    return put_between([line] * count, pieces, [round(place * count) for place in places])


def _in_haystack(materials: Materials, room: int, pieces: list[np.ndarray], places: list[float]) -> np.ndarray:
    hay, ends = materials.haystack.tokens(room), [0]
    for place in places:
        ends.append(max(ends[-1], materials.haystack.line_end(hay, round(place * room))))
    parts = [hay[begin:end] for begin, end in zip(ends, [*ends[1:], room], strict=True)]
    return put_between(parts, pieces, list(range(1, len(parts))))


def _among_needles(
    materials: Materials, room: int, pieces: list[np.ndarray], places: list[float], keys: str, values: str
) -> np.ndarray:
    def sentences(draws: random.Random) -> Iterator[str]:
        while True:
            yield sentence(values, _key(draws, keys, 1), _value(draws, values)) + "\n"

    stream = materials.stream(f"needles {keys} {values}", sentences)
    between = stream.fitting(room)
    return put_between(stream.tokens[: between.stop], pieces, [round(place * len(between)) for place in places])


_FILLS: dict[Hay, Callable[[Materials, int, list[np.ndarray], list[float]], np.ndarray]] = {
    "noise": _in_noise,
    "essay": _in_haystack,
}
