"""Text for benchmarks, and a tokenizer of it."""

from itertools import islice

from leyden.data import read_documents, standard_library_sources
from leyden.tokenizer import Tokenizer


def documents_with_tokenizer(count: int, vocab_size: int) -> tuple[list[str], Tokenizer]:
    """The first texts of the standard library, and a tokenizer of them with at most so many tokens."""
    documents = [one.text for one in islice(read_documents(standard_library_sources(), []), count)]
    return documents, Tokenizer.train(documents, vocab_size=vocab_size, allow_smaller=True)
