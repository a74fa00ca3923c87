"""Speculative decoding: tokens are guessed, and one step of the model verifies them.

It changes no token. Every token is drawn by inverting the model's distribution function at a number that depends on
seed, completion and position alone (:mod:`leyden.serve.sampling`); a guess is right if and only if that draw, from the
logits behind the text so far, is the guess. Logits behind a wrong guess are never drawn from. So a completion is, token
for token, what it is without guesses, at any temperature and under any penalty or grammar, given that a row's logits do
not depend on its company, which the runner promises; no test of ratios as in Leviathan et al. 2023 (arXiv:2211.17192)
is needed, whose outcomes have the right distribution but are other texts.
"""

from leyden.serve.speculation.draft import DraftModel
from leyden.serve.speculation.guesser import Ask, Guesser
from leyden.serve.speculation.lookup import PromptLookup
from leyden.serve.speculation.verify import verify

__all__ = ["Ask", "DraftModel", "Guesser", "PromptLookup", "verify"]
