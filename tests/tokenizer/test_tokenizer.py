"""Text and bytes round-trip, special tokens stay apart from text, and training does what was asked."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from leyden.core.errors import UserError
from leyden.tokenizer import StreamDecoder, Tokenizer
from leyden.tokenizer.bpe import SPLIT_PATTERN, byte_spelling

SPECIAL = ["<beginning_of_sentence>", "<end_of_sentence>", "<end_of_document>", "<function_call>", "<image>"]
# Text with what breaks tokenizers: special tokens spelt out, NULs, emoji, joiners, runs of one character.
HARD = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.sampled_from([*SPECIAL, "\0", "🙂", "👩‍👩‍👧", "東京", "\r\n", "    ", "\ufffd", "\ufeff", "'S", "١٢٣٤"]),
    )
).map("".join)


@given(HARD)
def test_text_round_trips_and_holds_no_special_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not any(tokenizer.is_special(index) for index in ids)


@given(st.lists(st.one_of(st.binary(), HARD.map(str.encode))).map(b"".join))
def test_bytes_round_trip(tokenizer, data):
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


@given(st.lists(HARD, max_size=5))
def test_a_batch_is_its_texts_one_by_one(tokenizer, texts):
    batch = tokenizer.encode_batch(texts)
    assert [ids.dtype for ids in batch] == [np.int32] * len(texts)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]


@given(st.lists(st.integers(0, 405)))
def test_streamed_text_joins_to_decoded_text(tokenizer, ids):
    for skip in (False, True):
        stream = StreamDecoder(tokenizer, skip_special=skip)
        pieces = [*(stream.push(index) for index in ids), stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip)


def test_a_stream_never_gives_half_a_character(tokenizer):
    ids = tokenizer.encode_bytes("🙂".encode()[:2]) + tokenizer.encode_bytes("🙂".encode()[2:])
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(index) for index in ids]
    assert len(ids) > 1
    assert pieces == [""] * (len(ids) - 1) + ["🙂"]


def test_decoding_replaces_what_is_not_text(tokenizer):
    assert tokenizer.decode(tokenizer.encode_bytes(b"a\xffb")) == "a\ufffdb"
    assert tokenizer.decode([10_000]) == ""  # an id of a padded vocabulary


def test_special_tokens_stand_at_the_end_and_are_read_only_when_allowed(tokenizer):
    assert tokenizer.special_tokens == dict(zip(SPECIAL, range(395, 400), strict=True))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eod_id, tokenizer.vocab_size) == (395, 396, 397, 400)
    text = "a<image>b<end_of_sentence>"
    ids = tokenizer.encode(text, allow_special=True)
    assert ids == [*tokenizer.encode("a"), 399, *tokenizer.encode("b"), 396]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special=True) == "ab"
    assert tokenizer.token_bytes(399) == b"<image>"


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_a_lone_surrogate_is_named(tokenizer, text):
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["fine", text])):
        with pytest.raises(UserError, match=f"lone surrogate.* at character {text.index(text.strip('ab'))}"):
            encode(text)


@pytest.mark.parametrize("text", [None, 3, b"bytes"])
def test_what_is_not_text_is_named(tokenizer, text):
    with pytest.raises(UserError, match="Only text can be encoded"):
        tokenizer.encode(text)


def test_text_is_split_before_merging():
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")

    def pieces(text):
        return [piece for piece, _ in split.pre_tokenize_str(text)]

    assert pieces("Hello world, it's HTMLParser2") == ["Hello", " world", ",", " it's", " HTMLParser", "2"]
    assert pieces("camelCase don'T") == ["camel", "Case", " don'T"]
    assert pieces("1234567") == ["123", "456", "7"]
    assert pieces("a  b\n\n  c") == ["a", " ", " b", "\n\n", " ", " c"]
    assert pieces("x == y; //\n") == ["x", " ==", " y", ";", " //\n"]
    assert pieces("(name)") == ["(name", ")"]
    assert pieces("東京 Привет") == ["東京", " Привет"]


def test_the_spelling_of_bytes_is_that_of_the_library():
    spelling = byte_spelling()
    assert sorted(spelling.values()) == list(range(256))
    assert set(spelling) == set(pre_tokenizers.ByteLevel.alphabet())
    encoded = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é\n ")[0][0]
    assert bytes(spelling[character] for character in encoded) == "é\n ".encode()


def test_training_gives_the_same_file_every_time_and_in_every_process(texts, directory, tmp_path):
    Tokenizer.train(iter(texts), vocab_size=400).save(tmp_path / "again")
    script = (
        "import json, sys; from leyden.tokenizer import Tokenizer;"
        "Tokenizer.train(json.load(sys.stdin), vocab_size=400).save(sys.argv[1])"
    )
    environment = {"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-c", script, str(tmp_path / "other")]
    subprocess.run(command, input=json.dumps(texts).encode(), check=True, env=environment)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        expected = (directory / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == expected
        assert (tmp_path / "other" / name).read_bytes() == expected


def test_a_vocabulary_that_the_text_does_not_support_says_what_it_does(texts):
    with pytest.raises(UserError, match=r"supports a vocabulary of (\d+), not of 5000") as caught:
        Tokenizer.train(["some words, some more words"], vocab_size=5000)
    supported = int(str(caught.value).split("vocabulary of ")[1].split(",")[0])
    assert Tokenizer.train(["some words, some more words"], vocab_size=supported).vocab_size == supported
    assert Tokenizer.train([], vocab_size=261).vocab_size == 261
    smaller = Tokenizer.train(["some words, some more words"], vocab_size=5000, allow_smaller=True)
    assert smaller.vocab_size == supported
    assert smaller.decode(smaller.encode("some words")) == "some words"
    with pytest.raises(UserError, match="make 261"):
        Tokenizer.train(texts, vocab_size=260)


def test_training_on_a_lone_surrogate_is_a_clear_error():
    with pytest.raises(UserError, match="lone surrogate"):
        Tokenizer.train(["fine", "a\ud800"], vocab_size=261)


def test_saved_and_loaded_is_the_same(tokenizer, texts, directory):
    loaded = Tokenizer.load(directory)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.special_tokens == tokenizer.special_tokens
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.bos_id, loaded.eos_id, loaded.eod_id) == (395, 396, 397)
    assert Tokenizer.train(texts, vocab_size=399).fingerprint != tokenizer.fingerprint


def test_a_directory_made_by_others(tokenizer, directory, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    assert Tokenizer.load(tmp_path).bos_id == 395  # by MiniMax's names
    config = {"eos_token": {"content": "<image>"}, "additional_special_tokens": ["<new>"]}
    special_map = {"eos_token": "<function_call>", "bos_token": "<image>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special_map))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}{{ eos_token }}")
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.special_tokens["<new>"]) == (399, 399, 400)
    assert loaded.vocab_size == 401
    assert loaded.encode_chat([{"role": "user", "content": "<new>"}]) == [*tokenizer.encode("<new>"), 399]
    loaded.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == loaded.fingerprint
    assert again.chat_template == loaded.chat_template


def test_one_of_several_templates_is_the_default(directory, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    templates = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert Tokenizer.load(tmp_path).chat_template == "yes"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(UserError, match="chat_template is neither"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("in_files", [False, True])
def test_a_template_of_its_own_for_tools(directory, tmp_path, in_files):
    chat, tools = "{{ messages[0].content }}", "{{ messages[0].content }}{{ tools | tojson }}"
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    if in_files:
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "chat_template.jinja").write_text(chat)
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(tools)
    else:
        templates = [{"name": "default", "template": chat}, {"name": "tool_use", "template": tools}]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    loaded = Tokenizer.load(tmp_path)
    loaded.save(tmp_path / "saved")
    loaded.save(tmp_path)
    for each in (loaded, Tokenizer.load(tmp_path / "saved"), Tokenizer.load(tmp_path)):
        assert (each.chat_template, each.tool_template) == (chat, tools)
        messages, told = [{"role": "user", "content": "a"}], [{"type": "function", "function": {"name": "f"}}]
        assert each.apply_chat_template(messages) == "a"
        assert each.apply_chat_template(messages, told) == "a" + json.dumps(told)
        assert each.decode(each.encode_chat(messages, told)) == "a" + json.dumps(told)


def _broken(directory, files):
    good = json.loads((directory / "tokenizer.json").read_text())
    nameless = {**good, "added_tokens": []}
    decoder = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    other_kind = {**good, "decoder": decoder}
    return {"nameless": json.dumps(nameless), "other kind": json.dumps(other_kind)}.get(files, files)


@pytest.mark.parametrize(
    ("definition", "config", "message"),
    [
        (None, None, "has no tokenizer.json"),
        ("{", None, "is not a tokenizer"),
        ('{"model": 3}', None, "is not a tokenizer"),
        ("other kind", None, "byte-level"),
        ("nameless", None, "which token ends a sequence"),
        ("{}", "{", "is not JSON"),
        ("{}", "[]", "must hold a JSON object"),
        ("{}", '{"eos_token": 7}', "has no text"),
    ],
)
def test_a_broken_directory_is_a_user_error(directory, tmp_path, definition, config, message):
    if definition is not None:
        (tmp_path / "tokenizer.json").write_text(_broken(directory, definition))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(UserError, match=message):
        Tokenizer.load(tmp_path)


def test_what_begins_a_text_is_no_part_of_the_fingerprint(tokenizer, directory, tmp_path):
    definition = json.loads((directory / "tokenizer.json").read_text())
    assert definition["post_processor"]["type"] == "TemplateProcessing"
    definition["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    assert tokenizer.encode("The dog", bos=True) == [395, *tokenizer.encode("The dog")]


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        ({}, None, (396, 397)),
        ({"eos_token_id": 7}, None, (396, 397, 7)),
        ({"eos_token_id": [396, 7]}, {"eos_token_id": 9}, (396, 397, 9, 7)),
        ({"eos_token_id": None}, {"eos_token_id": [9, 9]}, (396, 397, 9)),
        ({"eos_token_id": 410, "vocab_size": 512}, {}, (396, 397, 410)),
    ],
)
def test_end_tokens_are_all_that_the_files_name(directory, tmp_path, config, generation, ends):
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.end_ids == ends
    if len(ends) > 2 and max(ends) < 400:
        loaded.save(tmp_path / "saved")
        assert Tokenizer.load(tmp_path / "saved").end_ids == ends


@pytest.mark.parametrize("wrong", [400, -1, "7", True, [396, None], 3.5, {"a": 1}, 10**30])
def test_an_end_token_that_is_none_is_a_user_error(directory, tmp_path, wrong):
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(UserError, match="eos_token_id"):
        Tokenizer.load(tmp_path)


def test_without_threads_one_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``tokenizers`` panics where the system's limit allows it no thread."""
    tokenizer = Tokenizer.train(["some words"], vocab_size=261)
    want = [ids.tolist() for ids in tokenizer.encode_batch(["some", "words"])]

    class PanicException(BaseException):
        pass

    class Limited:
        def encode_batch_fast(self, *arguments: object, **settings: object) -> object:
            if os.environ.get("TOKENIZERS_PARALLELISM") != "false":
                raise PanicException("The global thread pool has not been initialized.: ThreadPoolBuildError")
            return backend.encode_batch_fast(*arguments, **settings)

    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    encoder = tokenizer._encoder
    backend = encoder._backend
    monkeypatch.setattr(encoder, "_backend", Limited())
    assert [ids.tolist() for ids in tokenizer.encode_batch(["some", "words"])] == want
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")


def test_the_end_of_a_sequence_is_named_by_the_model_where_the_tokenizer_does_not(directory, tmp_path):
    definition = json.loads((directory / "tokenizer.json").read_text())
    definition |= {"added_tokens": [{**definition["added_tokens"][0], "id": 395, "content": "</s>"}]}
    definition["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    for wrong in (10**30, 399):
        (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(UserError, match="which token ends a sequence"):
            Tokenizer.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 395}))
    Tokenizer.load(tmp_path).save(tmp_path / "saved")
    for loaded in (Tokenizer.load(tmp_path), Tokenizer.load(tmp_path / "saved")):
        assert (loaded.eos_id, loaded.end_ids, loaded.special_tokens) == (395, (395,), {"</s>": 395})
