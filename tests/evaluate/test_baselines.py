"""The compressor's and the unigram model's bits per byte."""

import lzma
import math
import random

import numpy as np
import pytest

from leyden.core.errors import UserError
from leyden.evaluate import baselines, token_counts, unigram_bits_per_byte, xz_bits_per_byte


def preset_9e_bytes(data: bytes) -> int:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def some_text(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(["state", "decay", "token", "läuft", "\n", "S = k v"], k=words))


def test_xz_in_pieces_is_preset_9e_on_the_joined_bytes():
    documents = [some_text(1, 700), "", some_text(2, 900)]
    data = "".join(documents).encode()
    pieces = [data[start : start + 4096] for start in range(0, len(data), 4096)]
    assert xz_bits_per_byte(documents) == 8 * sum(map(preset_9e_bytes, pieces)) / len(data)


def test_xz_by_document_is_preset_9e_on_each():
    documents = [some_text(1, 700), some_text(2, 900)]
    expected = 8 * sum(preset_9e_bytes(d.encode()) for d in documents) / sum(len(d.encode()) for d in documents)
    assert xz_bits_per_byte(documents, piece_bytes=None) == expected


def test_a_unigram_model_reaches_the_smoothed_entropy(tokenizer):
    train, held_out = ["aab"], ["ab"]
    counts = token_counts(tokenizer, train)
    assert counts[ord("a")] == 2
    assert counts[tokenizer.eod_id] == 1
    total = 4 + tokenizer.vocab_size
    bits = -math.log2(3 / total) - 2 * math.log2(2 / total)  # a, then b and the eod
    assert unigram_bits_per_byte(tokenizer, counts, held_out) == pytest.approx(bits / 2)


def test_all_baselines_by_name(tokenizer):
    documents = [some_text(3, 400)]
    found = baselines(tokenizer, token_counts(tokenizer, documents), documents)
    assert set(found) == {"unigram_tokens", "xz_4096", "xz_documents"}
    assert found["xz_documents"] < found["unigram_tokens"]


def test_bad_input(tokenizer):
    counts = token_counts(tokenizer, ["a"])
    with pytest.raises(UserError, match="hold no bytes"):
        xz_bits_per_byte([])
    with pytest.raises(UserError, match="hold no bytes"):
        unigram_bits_per_byte(tokenizer, counts, [""])
    with pytest.raises(UserError, match="do not fit a vocabulary"):
        unigram_bits_per_byte(tokenizer, np.zeros(5, dtype=np.int64), ["a"])
