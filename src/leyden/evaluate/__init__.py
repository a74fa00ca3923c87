"""How good a model is, what it is compared with, and the report of a run."""

from leyden.evaluate.baselines import baselines, token_counts, unigram_bits_per_byte, xz_bits_per_byte
from leyden.evaluate.environment import machine
from leyden.evaluate.likelihood import BitsPerByte, bits_per_byte

__all__ = [
    "BitsPerByte",
    "baselines",
    "bits_per_byte",
    "machine",
    "token_counts",
    "unigram_bits_per_byte",
    "xz_bits_per_byte",
]
