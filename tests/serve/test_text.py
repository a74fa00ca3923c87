"""Streaming text: whole characters, stop strings held back, nothing lost."""

from hypothesis import given
from hypothesis import strategies as st

from leyden.serve.text import TextStream
from leyden.tokenizer import Tokenizer


def stream(tokenizer: Tokenizer, tokens: list[int], *stop: str) -> tuple[list[str], bool]:
    text = TextStream(tokenizer, stop)
    pieces = []
    for token in tokens:
        pieces.append(text.push(token))
        if text.stopped:
            break
    return [*pieces, text.finish()], text.stopped


def byte_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token a byte."""
    single = {tokenizer.token_bytes(index): index for index in range(tokenizer.vocab_size)}
    return [single[bytes([byte])] for byte in text.encode()]


def test_a_character_comes_whole(tokenizer: Tokenizer) -> None:
    pieces, _ = stream(tokenizer, byte_tokens(tokenizer, "a雷"))
    assert pieces == ["a", "", "", "雷", ""]


def test_a_character_cut_short_is_replaced_at_the_end(tokenizer: Tokenizer) -> None:
    pieces, _ = stream(tokenizer, byte_tokens(tokenizer, "雷")[:2])
    assert pieces == ["", "", "�"]


def test_a_possible_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    pieces, stopped = stream(tokenizer, byte_tokens(tokenizer, "x\nUs \nUser:"), "\nUser:")
    assert pieces == ["x", "", "", "", "\nUs ", "", "", "", "", "", "", ""]
    assert stopped


def test_what_was_held_back_comes_at_the_end(tokenizer: Tokenizer) -> None:
    pieces, stopped = stream(tokenizer, byte_tokens(tokenizer, "ab"), "abc")
    assert pieces == ["", "", "ab"]
    assert not stopped


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    pieces, _ = stream(tokenizer, [tokenizer.bos_id, *byte_tokens(tokenizer, "a")])
    assert "".join(pieces) == "a"


@given(st.text("abä雷", max_size=20), st.lists(st.text("abä雷", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(tokenizer: Tokenizer, text: str, stop: list[str]) -> None:
    """Byte by byte, the first stop string to be complete decides."""
    ends = [(text.find(s) + len(s), -len(s)) for s in stop if s in text]
    expected = text if not ends else text[: min(ends)[0] + min(ends)[1]]
    pieces, stopped = stream(tokenizer, byte_tokens(tokenizer, text), *stop)
    assert "".join(pieces) == expected
    assert stopped == bool(ends)
