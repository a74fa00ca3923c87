"""log acc_norm^2 by hand and in exact arithmetic, and what is refused."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.study.discriminability import discriminability, select
from leyden.study.items import Item
from leyden.study.likelihood import item_scores
from leyden.study.metric import log_acc_norm2, normalised_weights, weighted_means

NATS = np.log([[0.08, 0.01], [0.2, 0.3]])
SIZES = np.array([[2, 1], [4, 4]])
ANSWERS = np.array([0, 1])


def test_the_arithmetic_reading_by_hand() -> None:
    # p / bytes: 0.04 against 0.01, and 0.05 against 0.075.
    found = log_acc_norm2(NATS, SIZES, ANSWERS, "arithmetic")
    assert found == pytest.approx([math.log(0.8), math.log(0.6)])


def test_the_geometric_reading_by_hand() -> None:
    # p ** (1 / bytes): sqrt(0.08) against 0.01, and the fourth roots of 0.2 and 0.3.
    a, b = math.sqrt(0.08), 0.3**0.25
    found = log_acc_norm2(NATS, SIZES, ANSWERS, "geometric")
    assert found == pytest.approx([math.log(a / (a + 0.01)), math.log(b / (b + 0.2**0.25))])


def test_equal_choices_are_chance() -> None:
    for reading in ("geometric", "arithmetic"):
        found = log_acc_norm2(np.full((1, 4), -7.0), np.full((1, 4), 3), np.array([2]), reading)
        assert found == pytest.approx([-math.log(4)])


def test_probabilities_that_underflow() -> None:
    found = log_acc_norm2(np.array([[-5000.0, -5001.0]]), np.array([[10, 10]]), np.array([0]), "arithmetic")
    assert found == pytest.approx([-math.log1p(math.exp(-1))])


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 50)), min_size=2, max_size=6), st.data())
def test_the_arithmetic_reading_in_fractions(choices: list[tuple[int, int]], data: st.DataObject) -> None:
    answer = data.draw(st.integers(0, len(choices) - 1))
    shares = [Fraction(p, 1000) / size for p, size in choices]
    nats = np.array([[math.log(p / 1000) for p, _ in choices]])
    sizes = np.array([[size for _, size in choices]])
    found = log_acc_norm2(nats, sizes, np.array([answer]), "arithmetic")[0]
    assert found == pytest.approx(math.log(shares[answer] / sum(shares)), rel=1e-9, abs=1e-12)


def test_items_with_fewer_choices_and_bytes_not_characters() -> None:
    items = [Item("1", "b", "", ("é", "ab"), 0), Item("2", "b", "", ("a", "b", "c"), 2)]
    found = item_scores(items, [[math.log(0.4), math.log(0.2)], [math.log(0.1)] * 3], "arithmetic")
    assert found == pytest.approx([math.log(2 / 3), math.log(1 / 3)])  # "é" has two bytes, like "ab"
    with pytest.raises(UserError, match="do not fit the items"):
        item_scores(items, [[0.0, 0.0], [0.0, 0.0]], "arithmetic")


def test_scores_that_are_refused() -> None:
    with pytest.raises(UserError, match="no bytes"):
        log_acc_norm2(NATS, SIZES * 0, ANSWERS, "geometric")
    with pytest.raises(UserError, match="item 1 has no finite"):
        log_acc_norm2(np.array([[-1.0, -1.0], [-1.0, np.nan]]), SIZES, ANSWERS, "geometric")


def test_weighted_means_and_weights() -> None:
    scores = {"a": np.array([[1.0, 3.0], [0.0, 0.0]]), "b": np.array([[10.0, 10.0, 40.0], [3.0, 3.0, 3.0]])}
    assert weighted_means(scores, {"a": 0.75, "b": 0.25}) == pytest.approx([1.5 + 5, 0.75])
    assert normalised_weights(["a", "b"], {"a": 3, "b": 1, "c": 9}) == {"a": 0.75, "b": 0.25}
    assert normalised_weights(["a", "b"], None) == {"a": 0.5, "b": 0.5}
    with pytest.raises(UserError, match="without one: b"):
        normalised_weights(["a", "b"], {"a": 1})
    with pytest.raises(UserError, match="benchmark 'c' has no scores; there are: a, b"):
        weighted_means(scores, {"c": 1.0})
    with pytest.raises(UserError, match="missing or not finite"):
        weighted_means({"a": np.array([[np.nan]])}, {"a": 1.0})


def test_discriminability_by_hand() -> None:
    better = {"good": np.array([[1.0], [3.0]]), "bad": np.array([[0.0], [4.0]])}
    worse = {"good": np.array([[-4.0], [-4.0]]), "bad": np.array([[1.0], [2.0]])}
    good, bad = discriminability(better, worse)
    # Means 2 and -4, pooled variance (2 + 0) / 2; means 2 and 1.5, pooled variance (8 + 0.5) / 2.
    assert (good.benchmark, good.gap, good.seed_sd, good.ratio) == ("good", 6, 1, 6)
    assert bad.ratio == pytest.approx(0.5 / math.sqrt(4.25))
    assert select([good, bad], 2.0) == ["good"]
    with pytest.raises(UserError, match=r"no benchmark tells.*good 6\.00, bad 0\.24"):
        select([good, bad], 7.0)
    with pytest.raises(UserError, match="at least 2 runs"):
        discriminability({"good": np.ones((1, 3))}, {"good": np.ones((2, 3))})
