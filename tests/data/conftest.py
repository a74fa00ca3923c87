import numpy as np
import pytest

from leyden.data import Document, write_shards
from leyden.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a b c d e f g h"], vocab_size=261)  # bytes alone: a text has as many tokens as bytes


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """40 texts of 1 to 60 letters; no two have the same letters in the same place of the alphabet."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 60, 40)
    texts = ["".join(chr(0x61 + letter) for letter in generator.integers(0, 26, n)) for n in lengths]
    return [Document(f"d{number}", text, "memory") for number, text in enumerate(texts)]


@pytest.fixture(scope="session", params=[1 << 28, 200], ids=["one shard", "many shards"])
def shards(request, tokenizer, documents, tmp_path_factory):
    return write_shards(documents, tokenizer, tmp_path_factory.mktemp("data") / "shards", shard_tokens=request.param)
