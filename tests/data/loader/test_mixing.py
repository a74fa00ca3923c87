"""Mixtures: asked shares at every prefix, linear transitions, classes of lengths, and a plan that comes true."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data.loader import turns as turns_module
from leyden.data.loader.mixed import MixedBatches
from leyden.data.loader.mixture_schedule import MixtureSchedule
from leyden.data.loader.mixture_shares import ONE, Component, Shares
from leyden.data.loader.turns import Turns


@pytest.fixture
def sources(numbered):
    """Tokens of source n begin with n + 1 hundred thousand."""
    generator = np.random.default_rng(0)
    return {
        name: numbered(generator.integers(1, 60, count).tolist(), first=100_000 * (number + 1))
        for number, (name, count) in enumerate({"web": 900, "code": 300, "books": 40}.items())
    }


def _mixture(*points, **settings):
    table = [{"step": step, "weights": weights} for step, weights in points]
    return MixtureSchedule.parse({"point": table, **settings}, "test")


def _make(sources, mixture, sequences=5, seq_len=64, seed=3):
    batch_tokens = seq_len * sequences
    return MixedBatches(sources, _timed(mixture, batch_tokens), seq_len=seq_len, batch_tokens=batch_tokens, seed=seed)


def _timed(mixture, step_tokens=1):
    return mixture.timed(10**9, lambda step: step * step_tokens)


def _source_of_rows(batch, seq_len=64):
    return (batch.tokens.reshape(-1, seq_len)[:, 0] // 100_000 - 1).tolist()


@pytest.fixture(scope="module")
def small_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns_module, "_CHUNK", 64)
        yield


shares_of_sources = st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any)


@settings(max_examples=60, deadline=None)
@given(st.lists(shares_of_sources, min_size=1, max_size=3), st.integers(1, 7), st.integers(1, 60))
def test_shares_are_met_at_every_prefix(points, per_step, apart):
    """Never a whole sequence ahead; behind by less than the harmonic number of the sources."""
    count = min(map(len, points))
    points = [point[:count] if any(point[:count]) else [1] * count for point in points]
    names = [f"s{number:02d}" for number in range(count)]
    mixture = _mixture(*((n * apart, dict(zip(names, map(float, p), strict=True))) for n, p in enumerate(points)))
    turns = Turns(Shares(_timed(mixture), [Component(name, 0, 10) for name in names]), count, 1, per_step)
    chosen, before = turns.of(0, 300)
    assert not before.any()
    asked, given_ = np.zeros(count), np.zeros(count)
    for sequence, turn in enumerate(chosen.tolist()):
        step = sequence // per_step
        at = min(step / apart, len(points) - 1)
        low, part = int(at), at - int(at)
        both = [np.array(point) / sum(point) for point in (points[low], points[min(low + 1, len(points) - 1)])]
        asked += both[0] * (1 - part) + both[1] * part
        given_[turn] += 1
        assert (given_ - asked).max() < 1 + 1e-6
        assert (asked - given_).max() < sum(1 / n for n in range(1, count + 1)) + 1e-6


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 250), st.integers(1, 150))
def test_turns_do_not_depend_on_what_was_asked_before(small_chunks, first, count):
    """Numbers that were asked for in one go are those of any other, over chunks and their borders."""
    mixture = _mixture((0, {"a": 1.0, "b": 2.5, "c": 0.1}), (90, {"b": 0.2, "c": 1.0}))
    components = [Component(name, 0, 10) for name in "abc"]
    fresh, whole = (Turns(Shares(_timed(mixture), components), 3, 1, 2) for _ in range(2))
    everything = whole.of(0, 400)[0]
    turns, before = fresh.of(first, count)
    assert np.array_equal(turns, everything[first : first + count])
    assert np.array_equal(before, np.bincount(everything[:first], minlength=3))


def test_token_shares_follow_the_weights_over_steps(sources):
    mixture = _mixture((10, {"web": 8, "code": 1, "books": 1}), (30, {"web": 1, "code": 4, "books": 5}))
    batches = _make(sources, mixture, sequences=10)
    asked, got = np.zeros(3), np.zeros(3)
    start, end = np.array([0.8, 0.1, 0.1]), np.array([0.1, 0.4, 0.5])
    for step in range(45):
        batch = batches.batch(step)
        got += np.bincount(batch.tokens[0] // 100_000, minlength=4)[1:]
        asked += 640 * (start + (end - start) * np.clip((step - 10) / 20, 0, 1))
        assert np.abs(got - asked).max() < 2 * 64 + 0.01 * 640 * (step + 1)
        order = _source_of_rows(batch)
        if step in (0, 44):
            assert Counter(order) == ({0: 8, 1: 1, 2: 1} if step == 0 else {0: 1, 1: 4, 2: 5})


def test_every_sequence_is_its_sources_own(sources):
    """A mixture's sequences are, source by source, those of the source packed alone."""
    batches = _make(sources, _mixture((0, {"web": 3, "code": 2, "books": 1})))
    alone = {
        n: itertools.chain.from_iterable(
            batch.tokens.reshape(-1, 64).tolist() for batch in _make({name: sources[name]}, _mixture((0, {name: 1})))
        )
        for n, name in enumerate(sources)
    }
    for number in range(30):
        batch = batches.batch(number)
        bounds = batch.cu_seqlens.tolist()
        assert set(range(0, 321, 64)) <= set(bounds)
        for row, source in zip(batch.tokens.reshape(-1, 64).tolist(), _source_of_rows(batch), strict=True):
            assert row == next(alone[source])
        traced = [segment.source for segment in batches.trace(number)]
        segments = [a for a in bounds[:-1] if batch.tokens[0, a]]
        names = list(sources)
        assert traced == [names[batch.tokens[0, a] // 100_000 - 1] for a in segments]


def test_the_plan_comes_true(sources):
    """What is planned beforehand is what the batches then hold, to the token; no document is used once too often."""
    mixture = _mixture((0, {"web": 5, "code": 3, "books": 1}), (40, {"code": 1, "books": 1}), length_bounds=[20, 40])
    batches = _make(sources, mixture)
    planned = batches.plan(100)
    uses = {name: np.zeros(shards.num_tokens, np.int64) for name, shards in sources.items()}
    for number in range(100):
        tokens = batches.batch(number).tokens[0].numpy()
        for n, name in enumerate(sources):
            np.add.at(uses[name], tokens[tokens // 100_000 == n + 1] - 100_000 * (n + 1), 1)
    for row in planned:
        shards = sources[row.source]
        chosen = (shards.lengths > row.longer_than) & (shards.lengths <= (row.up_to or 1000))
        found = uses[row.source][np.repeat(chosen, shards.lengths)]
        assert found.sum() == row.tokens
        assert row.documents == chosen.sum()
        assert row.epochs == pytest.approx(row.tokens / len(found))
        assert set(found) <= {int(row.epochs), int(row.epochs) + 1}
    assert sum(row.sequences for row in planned) == 500
    assert {row.source for row in planned} == set(sources) and len(planned) == 9


def test_caps_are_refused_before_anything_is_trained(sources):
    mixture = _mixture((0, {"web": 1, "code": 1, "books": 1}), max_epochs={"books": 2, "web": 4})
    batches = _make(sources, mixture)
    with pytest.raises(UserError, match=r"'books' runs dry after \d,\d+ tokens.* max_epochs \(2\).*Enough") as caught:
        batches.plan(100)
    dry = int(re.findall(r"after ([\d,]+) tokens", str(caught.value))[0].replace(",", "")) // batches.batch_tokens
    assert batches.plan(dry)[0].epochs <= 2
    with pytest.raises(UserError, match="runs dry"):
        batches.plan(dry + 1)
    assert [row.max_epochs for row in batches.plan(10)] == [2, None, 4]


def test_length_classes_have_their_weights(sources):
    """30, 30 and 40 % by length, whatever the sources hold of each; within a class sources share by their weights."""
    point = {"step": 0, "weights": {"web": 3, "code": 1, "books": 0}, "lengths": [0.3, 0.3, 0.4]}
    mixture = MixtureSchedule.parse({"point": [point], "length_bounds": [10, 30]}, "test")
    batches = _make(sources, mixture, sequences=10)
    planned = {(row.source, row.up_to): row.sequences for row in batches.plan(40)}
    for up_to, share in ((10, 120), (30, 120), (None, 160)):
        assert planned["books", up_to] == 0
        assert abs(planned["web", up_to] - share * 3 / 4) <= 1 and abs(planned["code", up_to] - share / 4) <= 1
    lengths_of = {10: range(1, 11), 30: range(11, 31), None: range(31, 61)}
    for row in batches._components:
        up_to = [10, 30, None][row.length_class]
        stream = batches._streams[batches._components.index(row)]
        assert set(stream.shards.lengths.tolist()) <= set(lengths_of[up_to])


def test_without_length_weights_classes_are_as_the_sources_have_them(sources):
    batches = _make(sources, _mixture((0, {"web": 1, "code": 1, "books": 2}), length_bounds=[30]), sequences=10)
    planned = {(row.source, row.up_to): row.sequences for row in batches.plan(100)}
    for name, weight in (("web", 1), ("code", 1), ("books", 2)):
        short = sources[name].lengths[sources[name].lengths <= 30].sum() / sources[name].num_tokens
        assert planned[name, 30] == pytest.approx(1000 * weight / 4 * short, abs=2)


def test_a_batch_has_the_mixture_at_its_first_token(sources):
    batches = _make(sources, _mixture((0, {"web": 1}), (1, {"code": 1, "books": 1})), sequences=6)
    assert set(_source_of_rows(batches.batch(0))) == {0}
    assert set(_source_of_rows(batches.batch(1))) == {1, 2}


def test_shares_are_exact_integers():
    components = [Component(name, 0, 1) for name in "abc"]
    shares = Shares(_timed(_mixture((0, {"a": 1, "b": 1, "c": 1}), (9, {"a": 1}))), components)
    for step in range(12):
        assert shares.at(step).sum() == ONE and shares.at(step).min() >= 0
    assert shares.at(9).tolist() == shares.at(11).tolist() == [ONE, 0, 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"point": []}, "point"),
        ({"point": [{"weights": {}}]}, "weights"),
        ({"point": [{"weights": {"a": -1, "b": 2}}]}, "must not be negative"),
        ({"point": [{"weights": {"a": 0}}]}, "not all zero"),
        ({"point": [{"step": 5, "tokens": 5, "weights": {"a": 1}}]}, "one mark: step, tokens or share"),
        ({"point": [{"weights": {"a": 1}, "lengths": [0.5, 0.4]}], "length_bounds": [9]}, "must sum to 1.* sum to 0.9"),
        ({"point": [{"weights": {"a": 1}}], "late": [{"source": "b", "share": 1, "last": 0.2}]}, "late.0.share"),
        (
            {"point": [{"weights": {"a": 1}}], "late": [{"source": s, "share": 0.5, "last": 0.2} for s in "bc"]},
            "late additions must sum to less than 1",
        ),
        ({"point": [{"weights": {"a": 1}}], "transition": 1.5}, "transition"),
        ({"point": [{"weights": {"a": 1}}], "length_bounds": [4, 4]}, "length_bounds must be positive and rise"),
        ({"point": [{"weights": {"a": 1}}], "length_bounds": [0]}, "length_bounds must be positive and rise"),
        ({"point": [{"weights": {"a": 1}, "lengths": [1, 2]}]}, "make 1 classes"),
        ({"point": [{"weights": {"a": 1}}], "max_epochs": {"aa": 1}}, "'aa', which has no weight; did you mean 'a'"),
        ({"point": [{"weights": {"a": 1}}], "max_epochs": {"a": 0}}, "must be positive"),
        ({"point": [{"weights": {"a": 1}}], "points": []}, "unknown key 'points'; did you mean 'point'"),
    ],
)
def test_mixtures_that_cannot_be(data, message):
    with pytest.raises(UserError, match=message):
        MixtureSchedule.parse(data, "test")


def test_mixtures_that_do_not_fit_the_sources(sources, numbered):
    with pytest.raises(UserError, match="names 'wab', which is no source; did you mean 'web'"):
        _make(sources, _mixture((0, {"wab": 1, "code": 1})))
    with pytest.raises(UserError, match="no weight for books, code"):
        _make(sources, _mixture((0, {"web": 1})))
    point = {"weights": {"a": 1}, "lengths": [0.5, 0.5]}
    with pytest.raises(UserError, match=r"mixture.point.0.lengths asks 0.5 .* more than 10 tokens, and no source that"):
        _make({"a": numbered([5])}, MixtureSchedule.parse({"point": [point], "length_bounds": [10]}, "test"))


def test_other_mixtures_refuse_to_resume(sources):
    weights = {"web": 1, "code": 1, "books": 1}
    state = _make(sources, _mixture((0, weights))).state_dict()
    _make(sources, _mixture((0, weights), max_epochs={"web": 3})).load_state_dict(state)
    for other in (
        _make(sources, _mixture((0, weights | {"web": 2}))),
        _make(sources, _mixture((0, weights)), sequences=2),
        _make(sources, _mixture((0, weights), late=[{"source": "web", "share": 0.1, "last": 0.5}])),
        _make(sources, _mixture((0, weights), length_bounds=[100])),
        _make(sources | {"web": sources["books"]}, _mixture((0, weights))),
    ):
        with pytest.raises(UserError, match="cannot be resumed on other data"):
            other.load_state_dict(state)
    batch = _make(sources, _mixture((0, weights))).batch(3)
    assert batch.tokens.dtype == batch.labels.dtype == torch.int64 and batch.cu_seqlens.dtype == torch.int32
