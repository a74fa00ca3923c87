"""A tokenizer.json may come from anybody: it is refused where it could harm, and steady where it is taken."""

import json
from types import SimpleNamespace

import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from leyden.core.errors import UserError
from leyden.tokenizer import Tokenizer


@pytest.fixture
def altered(directory, tmp_path):
    """Loads the tokenizer with its definition changed by a function, or its components set."""

    def load(change=lambda definition: None, **components) -> Tokenizer:
        definition = json.loads((directory / "tokenizer.json").read_text())
        change(definition)
        backend = Backend.from_str(json.dumps(definition))
        for name, component in components.items():
            setattr(backend, name, component)
        backend.save(str(tmp_path / "tokenizer.json"))
        return Tokenizer.load(tmp_path)

    return load


TEN_TIMES = [normalizers.Replace("a", "a" * 10)] * 9
TWICE = [normalizers.Replace(Regex("a"), "aa")] * 9
BYTES = [pre_tokenizers.ByteLevel(add_prefix_space=False)] * 9


@pytest.mark.parametrize(
    "components",
    [
        {"normalizer": normalizers.Sequence(TEN_TIMES)},
        {"normalizer": normalizers.Sequence([normalizers.Sequence(TWICE)])},
        {"normalizer": normalizers.Replace(Regex(""), "a" * 100)},
        {"normalizer": normalizers.Prepend("a" * 1_000_000)},
        {"normalizer": normalizers.Sequence([normalizers.NFC()] * 1000)},
        {"pre_tokenizer": pre_tokenizers.Sequence(BYTES)},
    ],
)
def test_what_multiplies_text_is_refused(altered, components):
    with pytest.raises(UserError, match=r"bytes of one"):
        altered(**components)


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.NFKC(),
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
        normalizers.Sequence([normalizers.Strip(), normalizers.Replace("aa", "b")]),
        normalizers.Prepend(" "),
    ],
)
def test_what_cannot_is_taken(altered, normalizer):
    tokenizer = altered(normalizer=normalizer)
    text = "Zürich \ufdfa aa"
    assert tokenizer.decode(tokenizer.encode(text)) == normalizer.normalize_str(text)


def test_ids_are_the_same_every_time(altered, tokenizer):
    tokenizer_with_dropout = altered(lambda definition: definition["model"].update(dropout=0.5))
    text = "The quick brown fox jumps over the lazy dog."
    assert {tuple(tokenizer_with_dropout.encode(text)) for _ in range(20)} == {tuple(tokenizer.encode(text))}


def test_other_models_under_a_byte_level_decoder_are_refused(altered):
    unigram = models.Unigram([("a", -1.0), ("b", -2.0)], 0, byte_fallback=False)
    with pytest.raises(UserError, match="its model is Unigram"):
        altered(model=unigram)
    with pytest.raises(UserError, match="its decoder Metaspace"):
        altered(decoder=decoders.Metaspace())


def test_a_vocabulary_that_lacks_bytes_is_refused(altered):
    def drop(definition):
        del definition["model"]["vocab"]["Ġ"]
        definition["model"]["merges"] = []

    with pytest.raises(UserError, match=r"no token for 1 of the bytes .* 0x20"):
        altered(drop)


def test_a_vocabulary_that_is_not_spelt_in_bytes_is_refused(altered):
    with pytest.raises(UserError, match="'▁' stands for none"):
        altered(lambda definition: definition["model"]["vocab"].update({"▁the": 500})).decode([500])


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$"])
def test_an_expression_that_gives_up_is_a_user_error(altered, pattern):
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = altered(pre_tokenizer=pre_tokenizers.Sequence([split, byte_level]))
    text = "a" * 40 + "!"
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["fine", text])):
        with pytest.raises(UserError, match="regular expression gives up"):
            encode(text)
    assert tokenizer.decode(tokenizer.encode("fine")) == "fine"


class PanicException(BaseException):
    """As a library in Rust raises where it panics."""


def panic(*arguments: object) -> None:
    raise PanicException("called `Result::unwrap()` on an `Err` value")


def test_a_text_on_which_the_fast_engine_panics_goes_the_slow_way(directory, tokenizer, monkeypatch):
    monkeypatch.setattr("leyden.tokenizer.encoder._FAST_FROM_BYTES", 0)
    fast = Tokenizer.load(directory)
    assert fast.encode("The dog") == tokenizer.encode("The dog")
    monkeypatch.setattr(fast._encoder._fast, "_encoding", SimpleNamespace(encode_ordinary=panic))
    assert fast.encode("The dog") == tokenizer.encode("The dog")


def test_a_file_on_which_the_library_panics_is_a_user_error(directory, monkeypatch):
    monkeypatch.setattr("leyden.tokenizer.tokenizer.Backend", SimpleNamespace(from_str=panic))
    with pytest.raises(UserError, match="is not a tokenizer"):
        Tokenizer.load(directory)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "config.json"])
@pytest.mark.parametrize("text", ['{"x": 1' + "0" * 5000 + "}", "[" * 100_000, "[]", "{", "\xff"])
def test_settings_that_are_no_json_object_are_refused(directory, tmp_path, name, text) -> None:
    (tmp_path / "tokenizer.json").write_text((directory / "tokenizer.json").read_text())
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=name):
        Tokenizer.load(tmp_path)
