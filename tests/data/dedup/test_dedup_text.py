"""Normalisation, windows of words and sorted runs against plain Python."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies

from leyden.core.errors import UserError
from leyden.data.dedup.changes import _cut, _merged
from leyden.data.dedup.clusters import Forest
from leyden.data.dedup.normalisation import normalised
from leyden.data.dedup.runs import END, Runs, groups, load_array, save_array, write_run
from leyden.data.dedup.windows import hash_strings, inner_windows, jaccard, shingle_sets, window_hashes, words_of

SOME = settings(max_examples=40)
TEXTS = strategies.lists(strategies.text("ab \n.é你", max_size=12), max_size=6)


def norm(*texts: str, split: bool = False) -> list[str]:
    return normalised(pa.array(texts, pa.large_string()), split_unspaced=split).to_pylist()


def test_case_punctuation_white_space_and_form_do_not_count():
    assert norm("  Don't\tPANIC -- now!\u00a0\u3000Ok\r\n") == ["dont panic now ok"]
    assert norm("caf\u00e9", "cafe\u0301") == ["cafe\u0301"] * 2
    assert norm("“Quoted” — and…") == ["quoted and"]
    assert norm("", "...", " ") == ["", "", ""]
    assert norm("a\x00b \x00") == ["a\x00b \x00"]


def test_scripts_without_spaces_are_split_into_characters():
    assert norm("你好。world 再見", split=True) == ["你 好 world 再 見"]
    assert norm("你好。world", split=False) == ["你好world"]
    assert norm("がぎ", split=True) == ["か\u3099 き\u3099"]  # NFD: a mark stays with its character
    assert norm("한국어 문서", split=True) == norm("한국어 문서")  # Korean has spaces
    assert norm("ไทย", split=True) == ["ไ ท ย"]


@SOME
@given(TEXTS)
def test_words_are_those_between_spaces(texts):
    clean = norm(*texts, split=True)
    flat, offsets = words_of(pa.array(clean, pa.large_string()))
    assert [flat.to_pylist()[a:b] for a, b in zip(offsets, offsets[1:], strict=False)] == [t.split() for t in clean]


@SOME
@given(strategies.lists(strategies.integers(0, 2), max_size=40), strategies.integers(1, 9))
def test_window_hashes_are_equal_just_when_windows_are(units, length):
    hashes = window_hashes(np.array(units, np.uint64), length)
    windows = [tuple(units[start : start + length]) for start in range(len(units) - length + 1)]
    assert len(hashes) == len(windows)
    assert len(set(hashes.tolist())) == len(set(windows)) == len(set(zip(hashes.tolist(), windows, strict=True)))


@SOME
@given(strategies.lists(strategies.integers(0, 7), max_size=8), strategies.integers(1, 4))
def test_inner_windows_cross_no_border(counts, length):
    offsets = np.cumsum([0, *counts])
    starts, texts = inner_windows(offsets, length)
    wanted = [(offsets[t] + s, t) for t, count in enumerate(counts) for s in range(count - length + 1)]
    assert list(zip(starts.tolist(), texts.tolist(), strict=True)) == wanted


@SOME
@given(TEXTS, strategies.integers(1, 4))
def test_jaccard_of_shingles_is_that_of_python_sets(texts, length):
    clean = norm(*texts, split=True)
    hashes, starts = shingle_sets(pa.array(clean, pa.large_string()), length)
    plain = [shingles(text, length) for text in clean]
    for i, left in enumerate(plain):
        for j, right in enumerate(plain):
            ours = jaccard(hashes[starts[i] : starts[i + 1]], hashes[starts[j] : starts[j + 1]])
            assert ours == (len(left & right) / len(left | right) if left | right else 1.0)


def shingles(text: str, length: int) -> set[tuple[str, ...]]:
    words = text.split()
    if 0 < len(words) < length:
        return {tuple(words)}
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def test_partitions_hold_every_record_once_and_fit_the_budget(tmp_path):
    generator = np.random.default_rng(0)
    keys = [generator.integers(0, END, size, dtype=np.uint64) for size in (4000, 0, 1, 6000)]
    keys[3][:2] = [0, END - 1]
    for index, key in enumerate(keys):
        write_run(tmp_path / str(index), key, np.arange(len(key), dtype=np.uint32))
    runs = Runs(tuple(tmp_path / str(index) for index in range(4)))
    ranges = runs.ranges(64_000)
    assert len(ranges) == 11  # 10001 records x 16 bytes x 4 copies / 64000, rounded up
    gathered = [runs.gather(*keys_of) for keys_of in ranges]
    assert max(len(key) for key, _, _ in gathered) * 64 < 64_000 * 1.2
    seen = {(s, v): k for key, value, source in gathered for k, v, s in zip(key, value, source, strict=True)}
    assert seen == {(s, v): k for s, key in enumerate(keys) for v, k in enumerate(key)}
    assert sum(len(key) for key, _, _ in gathered) == 10_001


def test_damaged_arrays_are_errors_that_name_the_file(tmp_path):
    path = tmp_path / "a.npy"
    save_array(path, np.arange(1000))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"a\.npy is missing or damaged"):
        load_array(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.npy is missing or damaged"):
        load_array(path)
    with pytest.raises(UserError, match=r"b\.npy is missing or damaged"):
        load_array(tmp_path / "b.npy")


@SOME
@given(strategies.lists(strategies.tuples(strategies.integers(0, 2), strategies.integers(0, 2)), max_size=12))
def test_groups_begin_where_records_differ(records):
    left, right = (np.array([record[side] for record in records], np.uint64) for side in (0, 1))
    order, fresh = groups(left, right)
    ordered = [records[index] for index in order]
    assert ordered == sorted(records)
    assert [ordered[i] for i in np.flatnonzero(fresh)] == sorted(set(records))


@SOME
@given(strategies.lists(strategies.tuples(strategies.integers(0, 19), strategies.integers(0, 19)), max_size=25))
def test_forest_joins_what_edges_join(edges):
    forest = Forest(20)
    sets = {number: {number} for number in range(20)}
    for begin in range(0, len(edges), 4):
        forest.join(np.array(edges[begin : begin + 4], np.int64).reshape(-1, 2))
    for left, right in edges:
        union = sets[left] | sets[right]
        for number in union:
            sets[number] = union
    assert forest.roots(np.arange(20)).tolist() == [min(sets[number]) for number in range(20)]
    assert forest.joined().tolist() == sorted({number for edge in edges for number in edge})


SPANS = strategies.lists(strategies.tuples(strategies.integers(0, 30), strategies.integers(1, 12)), max_size=6)


@SOME
@given(strategies.lists(strategies.text("abcdefgh", max_size=15), min_size=1, max_size=4), SPANS)
def test_spans_are_cut_from_messages_as_from_their_joined_text(parts, spans):
    rows = np.zeros(len(spans), np.int64)
    begins = np.array([begin for begin, _ in spans], np.int64)
    ends = np.array([begin + length for begin, length in spans], np.int64)
    _, begins, ends = _merged(rows, begins, ends)
    assert (begins[1:] > ends[:-1]).all()
    gone = {place for begin, length in spans for place in range(begin, begin + length)}
    wanted, place = [], 0
    for part in parts:
        wanted.append("".join(letter for index, letter in enumerate(part, place) if index not in gone))
        place += len(part) + 2
    assert _cut(parts, list(zip(begins.tolist(), ends.tolist(), strict=True))) == wanted


def test_hashes_of_no_strings_are_none():
    assert hash_strings(pa.array([], pa.large_string())).shape == (0,)
