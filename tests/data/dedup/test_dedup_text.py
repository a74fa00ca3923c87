"""Normalisation, windows of words and sorted runs against plain Python."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies

from leyden.core.errors import UserError
from leyden.data.arrays import write_array
from leyden.data.dedup.changes import _cut, _merged
from leyden.data.dedup.clusters import Forest
from leyden.data.dedup.exact import hash_texts
from leyden.data.dedup.normalisation import normalised
from leyden.data.dedup.runs import END, Runs, groups, load_array, save_array, write_run
from leyden.data.dedup.windows import hash_strings, inner_windows, jaccard, shingle_sets, window_hashes, words_of

SOME = settings(max_examples=40)
TEXTS = strategies.lists(strategies.text("ab \n.é你", max_size=12), max_size=6)


def norm(*texts: str) -> list[str]:
    return normalised(pa.array(texts, pa.large_string())).to_pylist()


def test_case_punctuation_white_space_and_form_do_not_count_where_words_are_compared():
    assert norm("  Don't\tPANIC -- now!\u00a0\u3000Ok\r\n") == ["don t panic -- now ok"]
    assert norm("caf\u00e9", "cafe\u0301") == ["cafe\u0301"] * 2
    assert norm("“Quoted”, and…") == ["quoted and"]
    assert norm("", "...", " ") == ["", "", ""]
    assert norm("a\x00b \x00") == ["a\x00b \x00"]


def test_scripts_without_spaces_are_split_into_characters():
    assert norm("你好。world 再見") == ["你 好 world 再 見"]
    assert norm("你好。world") == ["你 好 world"]
    assert norm("がぎ") == ["か\u3099 き\u3099"]  # NFD: a mark stays with its character
    assert norm("한국어 문서") == norm("한국어 문서")  # Korean has spaces
    assert norm("ไทย") == ["ไ ท ย"]


DIFFERENT = [
    ("Apples 1.50\nPears 2.25", "Apples 15.0\nPears 22.5"),
    ("Oslo -5\nBergen -3", "Oslo 5\nBergen 3"),
    ("Oslo −5", "Oslo 5"),
    ("return x + y", "return x - y"),
    ("a * b", "a / b"),
    ("a && b", "a || b"),
    ("a == b", "a != b"),
    ("if (!done)", "if (done)"),
    ("id|qty\n1|2|300", "id|qty\n12|3|00"),
    ("(a+b)^2 = a^2 + 2ab + b^2", "(a-b)^2 = a^2 - 2ab + b^2"),
    ("total[i - 1] = left[i]", "total[i + 1] = left[i]"),
    ("12:30", "1230"),
    (".5", "5"),
    ("5 %", "5"),
    ("$5", "€5"),
    ("C++", "C#"),
    ("well-known", "wellknown"),
    ("≤ 3", "≥ 3"),
    ("++>+<[-]", "+++>[<-]"),
    ("温度 −5 度", "温度 5 度"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_operators_signs_and_marks_in_numbers_count_among_words(one, other):
    assert norm(one) != norm(other)


def test_typography_does_not_count_among_words():
    for one, other in (
        ("“Don’t”, he said.", '"Don\'t" he said'),
        ("well-known", "well–known"),
        ("a word—another", "a word--another"),
        ("a – b", "a — b"),
        ("1990-1995", "1990–1995"),
        ("« Oui. »", "Oui"),
        ("`code`", "code"),
    ):
        assert norm(one) == norm(other), (one, other)


@SOME
@given(strategies.lists(strategies.text("a5é你.-!=+' ", max_size=5), max_size=6))
def test_no_text_depends_on_its_neighbours_in_a_batch(texts):
    assert norm(*texts) == [norm(text)[0] for text in texts]


def test_texts_that_differ_in_more_than_case_and_white_space_are_never_equal():
    """Thousands of pairs that one character parts: replaced, left out, put in, or two exchanged."""
    generator = random.Random(5)
    alphabet = "abcXYZ0159+-*/%=<>!?.,:;|&^~#@$€\"'()[]{}_\\`´“”‘’«»—–−…·×÷≤≥°±"
    alphabet += "éÉe\u0301ßñçøŁжЯΩωµ你好。、がノ한글🙂\u200b\u00ad\x00"
    pairs = []
    for _ in range(4000):
        letters = [generator.choice(alphabet + " \n\t") for _ in range(generator.randint(1, 12))]
        other, place, new = list(letters), generator.randrange(len(letters)), generator.choice(alphabet)
        change = generator.randrange(4)
        if change == 0:
            other[place] = new
        elif change == 1:
            del other[place]
        elif change == 2:
            other.insert(place, new)
        else:
            generator.shuffle(other)
        pairs.append(("".join(letters), "".join(other)))
    hashes = [
        list(zip(*(half.tolist() for half in hash_texts(pa.array(side, pa.large_string()), "words")), strict=True))
        for side in zip(*pairs, strict=True)
    ]
    equal = 0
    for (one, other), left, right in zip(pairs, *hashes, strict=True):
        same = " ".join(one.lower().split()) == " ".join(other.lower().split())
        assert (left == right) == same, (one, other)
        equal += same
    assert 100 < equal < 2000


@SOME
@given(TEXTS)
def test_words_are_those_between_spaces(texts):
    clean = norm(*texts)
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
    clean = norm(*texts)
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without a disk that is always full")
@pytest.mark.parametrize("length", [0, 3, 100_000])
def test_arrays_on_a_full_disk_are_told(length):
    with pytest.raises(OSError, match="No space left"):
        write_array(Path("/dev/full"), np.zeros(length))


def test_arrays_come_back(tmp_path):
    for array in (np.arange(7), np.zeros(0, np.uint64), np.zeros(3, [("row", "<u4"), ("begin", "<i8")])):
        write_array(tmp_path / "a.npy", array)
        again = np.load(tmp_path / "a.npy")
        assert again.dtype == array.dtype
        assert (again == array).all()
