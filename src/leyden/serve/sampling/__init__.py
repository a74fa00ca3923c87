"""Sampling: how the next token is drawn, and what the text must fit."""

from leyden.serve.sampling.config import Grammar, Sampling
from leyden.serve.sampling.grammar import CompiledGrammar, Grammars
from leyden.serve.sampling.logprobs import TokenLogprobs, measure, reports
from leyden.serve.sampling.sampler import Draw, Sampler, SamplerBatch, draw
from leyden.serve.sampling.together import choose_together

__all__ = [
    "CompiledGrammar",
    "Draw",
    "Grammar",
    "Grammars",
    "Sampler",
    "SamplerBatch",
    "Sampling",
    "TokenLogprobs",
    "choose_together",
    "draw",
    "measure",
    "reports",
]
