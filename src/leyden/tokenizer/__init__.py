"""Text to token ids and back: byte-level BPE, the chat template, and decoding token by token."""

from leyden.tokenizer.encoder import GaveUpError
from leyden.tokenizer.stream import StreamDecoder
from leyden.tokenizer.tokenizer import Tokenizer

__all__ = ["GaveUpError", "StreamDecoder", "Tokenizer"]
