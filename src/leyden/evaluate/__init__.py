"""How good a model is, what it is compared with, and the report of a run."""

from leyden.core.environment import machine
from leyden.evaluate.baselines import baselines, token_counts, unigram_bits_per_byte, xz_bits_per_byte
from leyden.evaluate.evaluation import evaluate
from leyden.evaluate.likelihood import BitsPerByte, bits_per_byte
from leyden.evaluate.report import write_report
from leyden.evaluate.task import Options

__all__ = [
    "BitsPerByte",
    "Options",
    "baselines",
    "bits_per_byte",
    "evaluate",
    "machine",
    "token_counts",
    "unigram_bits_per_byte",
    "write_report",
    "xz_bits_per_byte",
]
