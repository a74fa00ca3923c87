"""Long runs of one n-gram, beside a search that tries every place."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from leyden.data.loader.repeats import repeated


def slowly(tokens: list[int], bounds: list[int]) -> list[bool]:
    """Every place, every n-gram of up to 13 tokens: does it stand there 32 times in a row?"""
    found = [False] * len(tokens)
    for start, stop in zip(bounds, bounds[1:], strict=False):
        for size in range(1, 14):
            for at in range(start, stop - 32 * size + 1):
                gram = tokens[at : at + size]
                if tokens[at : at + 32 * size] == gram * 32:
                    # The run goes on as long as each token is the one of a period before.
                    end = at + 32 * size
                    while end < stop and tokens[end] == tokens[end - size]:
                        end += 1
                    found[at:end] = [True] * (end - at)
    return found


@given(
    parts=st.lists(
        st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(1, 40), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_it_is_what_a_search_of_every_place_finds(parts: list[tuple[list[int], int, bool]]) -> None:
    tokens: list[int] = []
    bounds = [0]
    for gram, times, ends in parts:
        tokens += gram * times
        if ends:
            bounds.append(len(tokens))
    bounds = sorted({*bounds, len(tokens)})
    assert repeated(np.array(tokens), np.array(bounds)).tolist() == slowly(tokens, bounds)


def test_thirteen_tokens_are_the_longest() -> None:
    text = np.random.default_rng(0).permutation(1000)
    for size, expected in ((13, 13 * 32), (14, 0)):
        tokens = np.concatenate([text, np.tile(text[:size], 32), text[::-1]])
        assert repeated(tokens, np.array([0, len(tokens)])).sum() in range(expected, expected + 3 if expected else 1)
