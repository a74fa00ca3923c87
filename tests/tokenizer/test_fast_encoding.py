"""The fast encoder gives the same ids as ``tokenizers``, and stands back where it would not."""

import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend

from leyden.core.errors import UserError
from leyden.tokenizer import Tokenizer
from leyden.tokenizer.bpe import SPLIT_PATTERN
from leyden.tokenizer.fast import GPT2_PATTERN, FastEncoder, fast_encoder

SPECIAL = ["<beginning_of_sentence>", "<end_of_sentence>", "<end_of_document>", "<function_call>", "<image>"]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "    ", " \n "]
TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.sampled_from(
            [*SPECIAL, *SPACES, "\0", "🙂", "👩‍👩‍👧", "東京", "\ufffd", "\ufeff", "'S", "'ſ", "١٢٣٤", "the dog"]
        ),
        st.builds(lambda text, times: text * times, st.text("aA1 \n=é東", max_size=3), st.integers(1, 300)),
    )
).map("".join)


@pytest.fixture(scope="module")
def backend(tokenizer) -> Backend:
    return tokenizer._backend


@pytest.fixture(scope="module")
def encoder(backend) -> FastEncoder:
    encoder = fast_encoder(backend)
    assert isinstance(encoder, FastEncoder)
    return encoder


@pytest.fixture
def fast(directory, monkeypatch) -> Tokenizer:
    """The tokenizer with the fast encoder in use from the first byte on."""
    monkeypatch.setattr("leyden.tokenizer.encoder._FAST_FROM_BYTES", 0)
    return Tokenizer.load(directory)


def slow_ids(backend: Backend, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids


@given(TEXTS)
def test_the_same_ids(encoder, backend, text):
    assert encoder.encode(text, len(text.encode())).tolist() == slow_ids(backend, text)


def test_every_character_is_split_alike(encoder, backend):
    codes = [code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    sample = [*codes[:0x3100], *codes[0x3100::173]]
    for before, after in (("a", "b"), (" ", "A"), ("1", " "), ("'", "\n")):
        text = "".join(before + chr(code) + after for code in sample)
        assert encoder.encode(text, len(text.encode())).tolist() == slow_ids(backend, text)


@pytest.mark.slow
def test_every_character_has_the_same_classes_in_both():
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    text = "".join(characters)
    for name in (r"\p{Lu}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{Ll}", r"\p{M}", r"\p{L}", r"\p{N}", r"\s"):
        kept = pre_tokenizers.Split(Regex(name), behavior="removed").pre_tokenize_str(text)
        encoder = FastEncoder({byte: bytes([byte]) for byte in range(256)}, name)
        found = bytes(encoder._encoding.encode_ordinary(text)).decode()
        assert set(found) == set(characters) - set("".join(piece for piece, _ in kept))


def test_texts_are_encoded_by_it_once_there_is_much_of_them(directory, texts, monkeypatch):
    monkeypatch.setattr("leyden.tokenizer.encoder._FAST_FROM_BYTES", 1000)
    monkeypatch.setattr("leyden.tokenizer.encoder._BYTES_PER_THREAD", 1000)
    tokenizer = Tokenizer.load(directory)
    tokenizer.encode("short")
    assert "_fast" not in vars(tokenizer._encoder)
    batch = tokenizer.encode_batch([*texts, "", SPECIAL[0]])
    assert isinstance(vars(tokenizer._encoder)["_fast"], FastEncoder)
    assert [ids.tolist() for ids in batch] == [slow_ids(tokenizer._backend, text) for text in [*texts, "", SPECIAL[0]]]
    assert {ids.dtype for ids in batch} == {np.dtype(np.int32)}
    assert tokenizer.encode(texts[0]) == batch[0].tolist()


def test_bad_text_is_named_all_the_same(fast):
    with pytest.raises(UserError, match=r"lone surrogate.* at character 1"):
        fast.encode("a\ud800b")
    with pytest.raises(UserError, match="Only text can be encoded"):
        fast.encode_batch(["fine", None])
    assert fast.decode_bytes(fast.encode_bytes(b"a\xffb")) == b"a\xffb"


@pytest.mark.parametrize(
    "text", ["a", " ", "\n", "東", "ab", "Aa", "A", "=", "1", "\u0301", " \t", "\n "], ids=lambda text: ascii(text)
)
def test_long_runs_neither_fail_nor_stall(fast, text):
    run = text * (100_000 // len(text))
    assert fast.encode(run) == slow_ids(fast._backend, run)


@pytest.mark.slow
def test_runs_of_a_million(fast):
    for text in ("a", " ", "\n", "東", "ab", "A", "\u0301", " \t"):
        run = text * 1_000_000 + "b"
        assert fast.encode(run) == slow_ids(fast._backend, run)


def test_white_space_that_the_engine_cannot_bear_goes_the_slow_way(encoder):
    for run in (" " * 1_000_000, "x" + "\t " * 300_000 + "b", "a" * 150_000 + " " * 200_000 + "a"):
        assert encoder.encode(run, len(run)) is None
    assert encoder.encode(" x" * 500_000, 1_000_000) is not None


def changed(backend: Backend, change) -> Backend:
    definition = json.loads(backend.to_str())
    change(definition)
    other = Backend.from_str(json.dumps(definition))
    other.encode_special_tokens = True
    return other


def _swap_merges(definition):
    merges = definition["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def _drop_merge(definition):
    merges = definition["model"]["merges"]
    longest = max(range(len(merges)), key=lambda place: len("".join(merges[place])))
    del merges[longest]


def _plain_added(definition):
    definition["added_tokens"].append({**definition["added_tokens"][0], "id": 400, "content": "dog", "special": False})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(normalizer={"type": "NFC"}), "normalises"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "of its own"),
        (lambda d: d["pre_tokenizer"]["pretokenizers"].pop(), "of its own"),
        (lambda d: d["model"].update(dropout=0.5), "not plain"),
        (_plain_added, "added tokens"),
        (_swap_merges, "order of ids"),
        (_drop_merge, "do not lead to token"),
    ],
)
def test_what_it_cannot_match_is_left_to_tokenizers(backend, change, reason):
    assert reason in fast_encoder(changed(backend, change))


def test_a_tokenizer_without_it_says_so_once_and_works(directory, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("leyden.tokenizer.encoder._FAST_FROM_BYTES", 0)
    backend = changed(Backend.from_file(str(directory / "tokenizer.json")), _swap_merges)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    with caplog.at_level(logging.INFO):
        assert tokenizer.encode("the dog") == slow_ids(tokenizer._backend, "the dog")
        tokenizer.encode("again")
    assert [record.message for record in caplog.records if "order of ids" in record.message] != []


def test_text_that_a_pattern_leaves_out_goes_the_slow_way(backend):
    def letters_only(definition):
        definition["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{L}+"}

    other = changed(backend, letters_only)
    encoder = fast_encoder(other)
    assert isinstance(encoder, FastEncoder)
    assert encoder.encode("the dog", 7) is None
    assert encoder.encode("dog", 3).tolist() == slow_ids(other, "dog")


@pytest.fixture(scope="module")
def gpt2_like(backend):
    splitter = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return changed(backend, lambda definition: definition.update(pre_tokenizer=splitter))


@given(text=TEXTS)
def test_the_split_of_gpt2(gpt2_like, text):
    encoder = fast_encoder(gpt2_like)
    assert encoder._encoding._pat_str == GPT2_PATTERN != SPLIT_PATTERN
    assert encoder.encode(text, len(text.encode())).tolist() == slow_ids(gpt2_like, text)


def test_merges_listed_for_every_pair_and_whole_words(backend, texts):
    """As converters from tiktoken write them: every pair that makes a token, and words looked up whole."""

    def converted(definition):
        model = definition["model"]
        learnt = sorted((index, token) for token, index in model["vocab"].items() if len(token) > 1)
        model["merges"] = [
            [token[:cut], token[cut:]]
            for _, token in learnt
            for cut in range(1, len(token))
            if token[:cut] in model["vocab"] and token[cut:] in model["vocab"]
        ]
        model["ignore_merges"] = True

    other = changed(backend, converted)
    encoder = fast_encoder(other)
    assert isinstance(encoder, FastEncoder)
    for text in texts:
        assert encoder.encode(text, len(text.encode())).tolist() == slow_ids(other, text)
