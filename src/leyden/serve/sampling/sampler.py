"""Drawing a token: the distribution function is inverted at one uniform number for each position.

Rows of a batch never meet in a sum, and a token's number depends on its position alone: a completion's tokens are the
same in whatever company they are drawn.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch

from leyden.core.transfers import fetch, pick
from leyden.ops import Filters, can_sample, filter_table, prepare_sample
from leyden.serve.sampling.config import Sampling
from leyden.serve.sampling.grammar import CompiledGrammar, forbid
from leyden.serve.sampling.logprobs import TokenLogprobs, measure, reports
from leyden.serve.sampling.penalties import Adjustments, adjust
from leyden.serve.sampling.together import choose_together
from leyden.serve.sampling.uniform import Uniforms


class Draw(NamedTuple):
    """One drawn token.

    Attributes:
        token: its id.
        logprobs: where asked for, of the model's own distribution.
    """

    token: int
    logprobs: TokenLogprobs | None = None


class Sampler:
    """Draws the tokens of one completion, in order.

    Args:
        sampling: how.
        prompt_tokens: what the repetition penalty counts beside the output.
        index: of the completion among the request's ``n``.
        end_tokens: those that end a text of this model.
        grammar: of ``sampling``, compiled; the sampler follows it from the beginning.

    Attributes:
        sampling: as given.
        num_drawn: tokens so far, the position of the next one.
        adjustments: what changes the next token's logits; None for nothing.
        matcher: which tokens may come next; None for all.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_tokens: Sequence[int] = (),
        index: int = 0,
        end_tokens: Collection[int] = (),
        grammar: CompiledGrammar | None = None,
    ) -> None:
        self.sampling = sampling
        self.num_drawn = 0
        self._ends = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else {*end_tokens})
        self._uniforms = Uniforms(sampling.seed, index)
        self.adjustments = Adjustments.of(sampling, prompt_tokens, self._ends)
        self.matcher = None if grammar is None else grammar.matcher()

    def __call__(self, logits: torch.Tensor) -> Draw:
        """The next token, from logits [V] in float32."""
        return draw([self], logits[None])[0]

    def ends(self, token: int) -> bool:
        """Whether the text ends with ``token``: an end token (unless they are ignored) or one of ``stop_token_ids``."""
        return token in self._ends

    @property
    def failure(self) -> str | None:
        """Why the text cannot be what was asked for, in the user's words; None as long as it can."""
        return None if self.matcher is None else self.matcher.failure

    @property
    def uniform(self) -> float:
        """The number that decides the next token."""
        return self.uniform_of(0)

    def uniform_of(self, ahead: int) -> float:
        """The number that decides the token ``ahead`` places behind the next."""
        return self._uniforms(self.num_drawn + ahead)

    def foresee(self, logits: torch.Tensor, ahead: int) -> int:
        """What it would draw from logits [V], ``ahead`` tokens later, by penalties and grammar unchanged.

        From the logits of a model like the sequence's own, this is a better guess of the draw than the most probable
        token: both invert their distribution function at the same number.
        """
        chooser = _Chooser([self.sampling])
        return chooser.choose(logits[None], [self.uniform_of(ahead)] if chooser.drawn else [])[0]

    def record(self, token: int) -> None:
        """``token`` is the next one."""
        self.num_drawn += 1
        if self.adjustments is not None:
            self.adjustments.record(token)
        if self.matcher is not None:
            self.matcher.accept(token)


class SamplerBatch:
    """Several completions whose tokens are drawn together, step by step, each as its sampler would draw it alone.

    Args:
        samplers: one a row, no two the same.
    """

    def __init__(self, samplers: Sequence[Sampler]) -> None:
        self._samplers = list(samplers)
        self._chooser = _Chooser([own.sampling for own in samplers])
        self._told = [row for row, own in enumerate(samplers) if own.sampling.logprobs is not None]
        self._tops = [samplers[row].sampling.logprobs or 0 for row in self._told]
        self._tables = [(row, own.adjustments) for row, own in enumerate(samplers) if own.adjustments is not None]
        self._matchers = [(row, own.matcher) for row, own in enumerate(samplers) if own.matcher is not None]

    def draw(self, logits: torch.Tensor) -> list[Draw]:
        """The next token of each completion; each sampler moves on by a token.

        Args:
            logits: [R, V] float32; not changed.
        """
        uniforms = [self._samplers[row].uniform for row in self._chooser.drawn]
        adjusted, told = self._adjusted(logits), list[TokenLogprobs]()
        if logits.is_cpu and not self._told:
            tokens = self._chooser.choose(adjusted, uniforms)
        else:
            tokens, told = self._choose_and_tell(logits, adjusted, uniforms)
        for sampler, token in zip(self._samplers, tokens, strict=True):
            sampler.record(token)
        draws = list(map(Draw, tokens))
        for row, one in zip(self._told, told, strict=True):
            draws[row] = Draw(tokens[row], one)
        return draws

    def _choose_and_tell(
        self, logits: torch.Tensor, adjusted: torch.Tensor, uniforms: Sequence[float]
    ) -> tuple[list[int], list[TokenLogprobs]]:
        """The tokens, and what is reported of some of them; from a GPU all of it comes by one copy."""
        if logits.is_cpu:
            chosen = torch.tensor(self._chooser.choose(adjusted, uniforms))
        else:
            chosen = self._chooser.choose_on_device(adjusted, uniforms)
        told, tops = self._told, self._tops
        measured = measure(pick(logits, told), pick(chosen, told), tops) if told else []
        found, *measured = fetch([chosen, *measured])
        tokens = found.tolist()
        return tokens, reports([tokens[row] for row in told], tops, measured) if told else []

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        if self._tables or self._matchers:
            logits = logits.clone()
        if self._matchers:
            forbid(logits, self._matchers)
        if self._tables:
            adjust(logits, self._tables)
        return logits


def draw(samplers: Sequence[Sampler], logits: torch.Tensor) -> list[Draw]:
    """The next token of each of several completions, as :meth:`SamplerBatch.draw` draws it."""
    return SamplerBatch(samplers).draw(logits)


class _Chooser:
    """Chooses the tokens of rows, as each one's sampling and its number decide.

    Args:
        samplings: of the rows.

    Attributes:
        drawn: the rows whose tokens are not the most probable ones, and therefore have a number each.
    """

    def __init__(self, samplings: Sequence[Sampling]) -> None:
        self._samplings = samplings
        self.drawn = [row for row, own in enumerate(samplings) if not own.greedy]
        self._filters = filter_table([_filters(own) for own in samplings])
        self._prepared: tuple[torch.Tensor, Callable[[], list[int]]] | None = None

    def choose(self, logits: torch.Tensor, uniforms: Sequence[float]) -> list[int]:
        """The token of each row of logits [R, V] on a CPU, by the numbers of :attr:`drawn`."""
        sample = self._native(logits)
        if sample is not None:
            if uniforms:
                self._filters.numpy()[self.drawn, -1] = uniforms
            return sample()
        drawn, samplings = self.drawn, self._samplings
        tokens = _argmax(logits) if len(drawn) < len(samplings) else [0] * len(samplings)
        if drawn:
            rows = zip(drawn, uniforms, strict=True)
            inverted = torch.stack([invert(logits[row], samplings[row], uniform) for row, uniform in rows])
            for row, token in zip(drawn, inverted.tolist(), strict=True):
                tokens[row] = token
        return tokens

    def choose_on_device(self, logits: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
        """The same of logits on a GPU: [R] int64, there."""
        numbers = [0.0] * len(self._samplings)
        for row, uniform in zip(self.drawn, uniforms, strict=True):
            numbers[row] = uniform
        return choose_together(self._samplings, numbers, logits)

    def _native(self, logits: torch.Tensor) -> Callable[[], list[int]] | None:
        """The native call that chooses from ``logits``; None where there is none.

        From step to step the logits lie in one tensor, of which nothing need be looked at again.
        """
        if self._prepared is None or self._prepared[0] is not logits:
            if not can_sample(logits):
                return None
            self._prepared = logits, prepare_sample(logits, self._filters)
        return self._prepared[1]


def _filters(sampling: Sampling) -> Filters:
    return Filters(
        0 if sampling.greedy else sampling.temperature,
        math.inf if sampling.top_k is None else sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        math.inf if sampling.top_n_sigma is None else sampling.top_n_sigma,
        uniform=0.0,
    )


def _argmax(logits: torch.Tensor) -> list[int]:
    """The first of the largest in each row of logits [R, V]. On a CPU numpy finds it ten times faster than torch."""
    return (logits.numpy() if logits.is_cpu else logits).argmax(-1).tolist()


def invert(logits: torch.Tensor, sampling: Sampling, uniform: float) -> torch.Tensor:
    """The token at which the distribution function first exceeds ``uniform``.

    The slow twin of :func:`leyden.ops.sample`. Rows go through this one by one: one row fits the processor's cache, and
    no other one can change its sums.

    Args:
        logits: [V] float32, adjusted.
        sampling: temperature and filters.
        uniform: in [0, 1).

    Returns:
        An int64 scalar.
    """
    weights = (logits - logits.max()).div_(sampling.temperature).exp_()
    filter_weights(weights, logits, sampling)
    below = weights.cumsum(0, dtype=torch.float64)
    # Where none of the others exceeds it, it is the last token, also if rounding makes the product the whole sum.
    return torch.searchsorted(below[:-1], uniform * below[-1], right=True)


def filter_weights(weights: torch.Tensor, logits: torch.Tensor, sampling: Sampling) -> None:
    """Set to 0, in place, what ``top_k``, ``top_p``, ``min_p`` and ``top_n_sigma`` leave out.

    Each filter keeps the head of the tokens in order of falling probability; together they keep the shortest head,
    which its smallest weight describes.

    Args:
        weights: [V] float32, probabilities relative to the largest.
        logits: [V] float32, from which they were computed.
        sampling: the filters.
    """
    values = weights.numpy() if weights.is_cpu else weights  # on a CPU numpy selects and sorts much faster than torch
    smallest = sampling.min_p
    if sampling.top_n_sigma is not None:
        sigma = float(logits[logits.isfinite()].double().std(correction=0))  # what a grammar forbids is infinite
        smallest = max(smallest, math.exp(-sampling.top_n_sigma * sigma / sampling.temperature))
    if sampling.top_k is not None or sampling.top_p < 1:
        total = float(weights.sum(dtype=torch.float64))
        smallest = max(smallest, float(_head(values, total, sampling)[-1]))
    if smallest > 0:
        values *= values >= smallest


def _head(weights: torch.Tensor | np.ndarray, total: float, sampling: Sampling) -> torch.Tensor:
    """Of weights [V] whose sum is ``total``, those that ``top_k`` and ``top_p`` keep, in falling order."""
    if sampling.top_k is None:
        # All tokens up to this weight together have less than 1 - p, so none of them is kept.
        bound = (1 - sampling.top_p) * total / (2 * len(weights))
        if isinstance(weights, torch.Tensor):
            weights = weights[weights > bound]
        else:
            weights = np.compress(weights > bound, weights)
    head = _falling(weights, sampling.top_k)
    if sampling.top_p < 1:
        below = head.cumsum(0, dtype=torch.float64)
        total = total if sampling.top_k is None else float(below[-1])
        head = head[: torch.searchsorted(below, sampling.top_p * total) + 1]
    return head


def _falling(values: torch.Tensor | np.ndarray, count: int | None) -> torch.Tensor:
    """The largest ``count`` of [V], or all, in falling order."""
    count = min(count or len(values), len(values))
    if isinstance(values, torch.Tensor):
        return values.topk(count).values
    if count < len(values):
        values = np.partition(values, -count)[-count:]
    return torch.from_numpy(np.sort(values)).flip(0)
