import pytest

from leyden.tokenizer import Tokenizer

_TEXTS = [
    "The quick brown fox jumps over the lazy dog. The dog doesn't mind, it's asleep.\n" * 20,
    "def add(first, second):\n    return first + second\n\n\nclass Thing:\n    pass\n" * 20,
    "Zürich, Köln, 東京, 北京, Привет мир, 12345 and 67890. 🙂🙃 naïve café\n" * 20,
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return _TEXTS


@pytest.fixture(scope="session")
def tokenizer(texts) -> Tokenizer:
    return Tokenizer.train(texts, vocab_size=400)


@pytest.fixture(scope="session")
def directory(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path
