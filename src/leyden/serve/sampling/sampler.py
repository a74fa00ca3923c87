"""The draws: one uniform number a position, and the distribution function inverted there.

Rows of a batch never meet in a sum, and a token's number depends on its position alone: a completion's tokens are the
same in whatever company they are drawn.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from leyden.serve.sampling.config import Sampling
from leyden.serve.sampling.grammar import CompiledGrammar, forbid
from leyden.serve.sampling.logprobs import TokenLogprobs, token_logprobs
from leyden.serve.sampling.penalties import Adjustments, adjust
from leyden.serve.sampling.uniform import Uniforms

_HEAD = 256
"""Most probable tokens among which the end of ``top_p`` is looked for first; mostly it lies there."""


@dataclass(frozen=True)
class Draw:
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
    def uniform(self) -> float:
        """The number that decides the next token."""
        return self._uniforms(self.num_drawn)

    def record(self, token: int) -> None:
        """``token`` is the next one."""
        self.num_drawn += 1
        if self.adjustments is not None:
            self.adjustments.record(token)
        if self.matcher is not None:
            self.matcher.accept(token)


def draw(samplers: Sequence[Sampler], logits: torch.Tensor) -> list[Draw]:
    """The next token of each of several completions, as each one's sampler would draw it alone.

    Args:
        samplers: one a row, no two the same; each moves on by a token.
        logits: [R, V] float32; not changed.
    """
    tokens = _choose(samplers, _adjusted(samplers, logits))
    for sampler, token in zip(samplers, tokens, strict=True):
        sampler.record(token)
    draws = list(map(Draw, tokens))
    rows = [row for row, sampler in enumerate(samplers) if sampler.sampling.logprobs is not None]
    if rows:
        tops = [samplers[row].sampling.logprobs or 0 for row in rows]
        for report, row in zip(token_logprobs(logits[rows], [tokens[row] for row in rows], tops), rows, strict=True):
            draws[row] = Draw(tokens[row], report)
    return draws


def _adjusted(samplers: Sequence[Sampler], logits: torch.Tensor) -> torch.Tensor:
    tables = [(row, own.adjustments) for row, own in enumerate(samplers) if own.adjustments is not None]
    matchers = [(row, own.matcher) for row, own in enumerate(samplers) if own.matcher is not None]
    if tables or matchers:
        logits = logits.clone()
    if matchers:
        forbid(logits, matchers)
    if tables:
        adjust(logits, tables)
    return logits


def _choose(samplers: Sequence[Sampler], logits: torch.Tensor) -> list[int]:
    chance = [row for row, sampler in enumerate(samplers) if not sampler.sampling.greedy]
    if not chance:
        return _argmax(logits)
    if len(chance) == len(samplers):
        return _invert(samplers, logits)
    certain = [row for row, sampler in enumerate(samplers) if sampler.sampling.greedy]
    tokens = [0] * len(samplers)
    for row, token in zip(chance, _invert([samplers[row] for row in chance], logits[chance]), strict=True):
        tokens[row] = token
    for row, token in zip(certain, _argmax(logits[certain]), strict=True):
        tokens[row] = token
    return tokens


def _argmax(logits: torch.Tensor) -> list[int]:
    """The first of the largest of each row. On a CPU numpy finds it ten times faster than torch."""
    return (logits.numpy() if logits.device.type == "cpu" else logits).argmax(-1).tolist()


def _invert(samplers: Sequence[Sampler], logits: torch.Tensor) -> list[int]:
    """Where each row's distribution function first exceeds its uniform number.

    Weights relative to the most probable token are float32; what they add up to, float64.
    """
    temperatures = torch.tensor([[own.sampling.temperature] for own in samplers], device=logits.device)
    weights = (logits - logits.amax(-1, keepdim=True)).div_(temperatures).exp_()
    filter_weights(weights, [own.sampling for own in samplers])
    below = weights.cumsum(-1, dtype=torch.float64)
    uniforms = torch.tensor([[own.uniform] for own in samplers], dtype=torch.float64, device=logits.device)
    places = torch.searchsorted(below, uniforms * below[:, -1:], right=True)
    return places.clamp_(max=logits.shape[-1] - 1)[:, 0].tolist()


def filter_weights(weights: torch.Tensor, samplings: Sequence[Sampling]) -> None:
    """Set to 0, in place, what ``top_k``, ``top_p`` and ``min_p`` leave out.

    Each filter keeps the head of the tokens in order of falling probability; together they keep the shortest head,
    which its smallest weight describes.

    Args:
        weights: [R, V] float32, probabilities relative to the row's largest.
        samplings: one a row.
    """
    cut = [row for row, own in enumerate(samplings) if own.top_k is not None or own.top_p < 1]
    if not cut and all(own.min_p == 0 for own in samplings):
        return
    smallest = torch.tensor([own.min_p for own in samplings], device=weights.device)
    if cut:
        size = min(_HEAD, weights.shape[1])
        heads = weights[cut].topk(size).values
        for row, head in zip(cut, heads, strict=True):
            smallest[row] = torch.maximum(smallest[row], _smallest_kept(weights[row], head, samplings[row]))
    weights.masked_fill_(weights < smallest[:, None], 0)


def _smallest_kept(weights: torch.Tensor, head: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The weight of the last token that ``top_k`` and ``top_p`` keep.

    Args:
        weights: [V].
        head: the largest of them, in falling order.
        sampling: the filters.
    """
    num_tokens = min(sampling.top_k or len(weights), len(weights))
    if sampling.top_k is not None and num_tokens > len(head):
        head = weights.topk(num_tokens).values
    head = head[:num_tokens]
    if sampling.top_p == 1:
        return head[-1]
    upto = head.cumsum(0, dtype=torch.float64)
    total = upto[-1] if len(head) == num_tokens else weights.sum(dtype=torch.float64)
    while upto[-1] < sampling.top_p * total and len(head) < num_tokens:
        head = weights.topk(min(16 * len(head), num_tokens)).values
        upto = head.cumsum(0, dtype=torch.float64)
    place = torch.searchsorted(upto, sampling.top_p * total)
    return head[place.clamp_(max=len(head) - 1)]
