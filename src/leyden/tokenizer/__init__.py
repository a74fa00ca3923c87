"""Text to token ids and back: byte-level BPE, the chat template, and decoding token by token."""

from leyden.tokenizer.stream import StreamDecoder
from leyden.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
