"""Marks along a stage: steps, tokens and shares, a transition from the stage before, and late additions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data.loader.mixed import MixedBatches
from leyden.data.loader.mixture_schedule import MixtureSchedule, TimedMixture
from leyden.data.loader.mixture_shares import ONE, Component, Shares

WEB, CODE, QA = (Component(name, 0, 100) for name in ("web", "code", "qa"))
TOTAL = 1000


def timed(table: dict, before: TimedMixture | None = None, step_tokens: int = 10) -> TimedMixture:
    return MixtureSchedule.parse(table, "test").timed(TOTAL, lambda step: step * step_tokens, before)


def shares(table: dict, *components: Component, before: TimedMixture | None = None) -> Shares:
    return Shares(timed(table, before), components)


def at(found: Shares, tokens: int) -> list[float]:
    parts = found.at(tokens)
    assert parts.sum() == ONE
    return pytest.approx((parts / ONE).tolist(), abs=1e-9)


@pytest.mark.parametrize("mark", [{"step": 40}, {"tokens": 400}, {"share": 0.4}])
def test_a_mark_is_a_step_or_tokens_or_a_share(mark: dict) -> None:
    found = shares({"point": [{"weights": {"web": 1}}, {**mark, "weights": {"web": 1, "code": 3}}]}, WEB, CODE)
    for tokens, code in ((0, 0), (100, 0.1875), (200, 0.375), (400, 0.75), (999, 0.75), (5000, 0.75)):
        assert [1 - code, code] == at(found, tokens)


def test_a_late_addition_takes_its_share_of_all() -> None:
    table = {"point": [{"weights": {"web": 1, "code": 1}}], "late": [{"source": "qa", "share": 0.1, "last": 0.2}]}
    found = shares(table, WEB, CODE, QA)
    assert at(found, 799) == [0.5, 0.5, 0]
    assert at(found, 800) == [0.45, 0.45, 0.1]
    assert at(found, 999) == [0.45, 0.45, 0.1]


def test_a_source_may_be_weighed_and_added() -> None:
    table = {"point": [{"weights": {"web": 3, "qa": 1}}], "late": [{"source": "qa", "share": 0.2, "last": 1}]}
    assert at(shares(table, WEB, QA), 0) == [0.6, 0.4]


def test_a_transition_goes_linearly_from_the_end_of_the_stage_before() -> None:
    """Which ends with its late addition; that of this stage comes on top."""
    late = [{"source": "qa", "share": 0.2, "last": 0.5}]
    before = timed({"point": [{"weights": {"web": 1}}, {"share": 1, "weights": {"web": 1, "code": 1}}], "late": late})
    table = {"point": [{"weights": {"code": 1, "web": 0}}], "transition": 0.4, "late": late}
    found = shares(table, WEB, CODE, QA, before=before)
    begin, end = np.array([0.4, 0.4, 0.2]), np.array([0, 1, 0])
    for tokens in (0, 100, 399, 400, 499):
        assert (begin + (end - begin) * min(tokens / 400, 1)).tolist() == at(found, tokens)
    assert at(found, 500) == [0, 0.8, 0.2]


def test_classes_change_over_a_transition() -> None:
    """Between the class shares of both stages, the sources of each class by their weights."""
    bounds = {"length_bounds": [10, 100]}
    components = [Component(name, number, 50) for name in ("books", "web") for number in range(3)]
    before = timed({"point": [{"weights": {"web": 1, "books": 1}, "lengths": [0.3, 0.7, 0]}], **bounds})
    table = {"point": [{"weights": {"web": 1, "books": 3}, "lengths": [0.3, 0.3, 0.4]}], "transition": 0.1, **bounds}
    found = shares(table, *components, before=before)
    assert at(found, 0) == [0.15, 0.35, 0, 0.15, 0.35, 0]
    assert at(found, 50) == [0.1875, 0.2875, 0.15, 0.1125, 0.2125, 0.05]
    assert at(found, 100) == [0.225, 0.225, 0.3, 0.075, 0.075, 0.1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=4, unique=True), st.floats(0, 1), st.data())
def test_as_a_slow_twin_says(marks: list[int], transition: float, data: st.DataObject) -> None:
    """Token by token, from the definition."""
    marks = sorted(marks)
    weights = [data.draw(st.tuples(st.integers(0, 5), st.integers(1, 5))) for _ in marks]
    points = [{"tokens": m, "weights": {"web": w, "code": c}} for m, (w, c) in zip(marks, weights, strict=True)]
    last = data.draw(st.floats(0.01, 1))
    table = {"point": points, "transition": transition, "late": [{"source": "qa", "share": 0.25, "last": last}]}
    before = timed({"point": [{"weights": {"qa": 1}}]})
    found = shares(table, WEB, CODE, QA, before=before)
    webs = [w / (w + c) for w, c in weights]
    for tokens in data.draw(st.lists(st.integers(0, 1000), min_size=1, max_size=10)):
        web = float(np.interp(tokens, marks, webs))
        own = np.array([web, 1 - web, 0])
        if tokens >= TOTAL - round(last * TOTAL):
            own = 0.75 * own + [0, 0, 0.25]
        end = round(transition * TOTAL)
        part = 1 if tokens >= end else tokens / end
        assert ((1 - part) * np.array([0, 0, 1]) + part * own).tolist() == at(found, tokens)


@pytest.mark.parametrize(
    ("table", "before", "says"),
    [
        ({"transition": 0.1}, None, "mixture.transition .* this is the first stage"),
        ({"point": [{"step": 5, "weights": {"web": 1}}, {"tokens": 50, "weights": {"web": 1}}]}, None, "a later mark"),
        (
            {"transition": 0.1},
            {"point": [{"weights": {"books": 1}}]},
            "source 'books' has no documents.*Give this stage",
        ),
        ({"late": [{"source": "books", "share": 0.1, "last": 0.2}]}, None, "mixture.late names source 'books'"),
        ({"point": [{"weights": {"web": 1, "books": 1}}]}, None, r"mixture.point.0.weights: source 'books' has no doc"),
        (
            {"transition": 0.1},
            {"point": [{"weights": {"web": 1}, "lengths": [1, 0]}], "length_bounds": [5]},
            r"length_bounds are \[5\] and not \[\]",
        ),
    ],
)
def test_mixtures_that_do_not_fit(table: dict, before: dict | None, says: str) -> None:
    table = {"point": [{"weights": {"web": 1}}]} | table
    with pytest.raises(UserError, match=says):
        shares(table, WEB, CODE, before=None if before is None else timed(before))


def test_batches_do_not_depend_on_the_steps_that_they_make(numbered) -> None:
    """A mark in tokens is the same batch whatever the batch size; so a run goes on after a change of it."""
    sources = {"web": numbered([9] * 200, first=1), "code": numbered([9] * 200, first=10_001)}
    table = {"point": [{"weights": {"web": 1}}, {"tokens": 500, "weights": {"code": 1}}]}
    several = [
        MixedBatches(sources, timed(table, step_tokens=tokens), seq_len=20, batch_tokens=40, seed=0)
        for tokens in (40, 400)
    ]
    assert several[0].fingerprint == several[1].fingerprint
    assert all((several[0].batch(n).tokens == several[1].batch(n).tokens).all() for n in range(30))


def test_a_source_that_is_left_out_leaves_the_others_as_they_are() -> None:
    late = [{"source": "qa", "share": 0.1, "last": 0.2}]
    table = {"point": [{"weights": {"web": 1, "code": 3, "qa": 4}}], "late": late, "max_epochs": {"qa": 2, "web": 4}}
    without = MixtureSchedule.parse(table, "test").without("qa")
    assert without == MixtureSchedule.parse(
        {"point": [{"weights": {"web": 1, "code": 3}}], "max_epochs": {"web": 4}}, "test"
    )
    alone = MixtureSchedule.parse({"point": [{"weights": {"web": 0, "qa": 1}}]}, "test")
    assert alone.without("qa") == alone
