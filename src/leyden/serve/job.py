"""A sequence in the engine: its tokens, the memory it holds, and its output so far."""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from leyden.model import PAGE
from leyden.serve.inserts import Insert
from leyden.serve.memory import Holding, Swapped
from leyden.serve.request import CacheUse, Delta, FinishReason, Request, RequestUsage, adapter_of
from leyden.serve.runner import PromptScores, Reading
from leyden.serve.sampling import CompiledGrammar, Draw, Sampler, TokenLogprobs
from leyden.serve.text import TextStream
from leyden.tokenizer import Tokenizer


@dataclass(eq=False)
class Job:
    """A text that is to be read.

    Attributes:
        tokens: all of it, as far as it is known.
        goal: how many of its first tokens are read in parts, as prompts are; later ones are read one by one.
        rank: the lower goes first: priority, time of arrival, and index among those that arrived together.
        salt, inserts: as of :class:`leyden.serve.request.Request`.
        read: how many tokens have been read.
        holding: the slots and pages it has, while it is running.
        swapped: what it held, while it had to make room.
    """

    tokens: list[int]
    goal: int
    rank: tuple[int, float, int]
    salt: str = ""
    inserts: Sequence[Insert] = ()
    read: int = 0
    holding: Holding | None = None
    swapped: Swapped | None = None

    @property
    def decodes(self) -> bool:
        """Whether all that is read in parts has been read."""
        return self.read >= self.goal

    def part(self, budget: int, cuts: Iterable[int]) -> int:
        """Where a part of at most ``budget`` tokens ends: on the grid, at a cut, or with the prompt."""
        left = self.goal - self.read
        stop = self.goal if left <= budget else self.read + budget // PAGE * PAGE
        return min((cut for cut in cuts if self.read < cut < stop), default=stop)

    def wanted(self, stop: int) -> int:
        """Of how many of the tokens up to ``stop``, from those already read, the logits are asked for."""
        return 0

    def reading(self, stop: int) -> Reading:
        """Read the part that ends at ``stop``."""
        assert self.holding is not None
        tokens, pages, states = self.tokens[self.read : stop], self.holding.pages, [self.holding.state]
        return Reading(
            tokens, self.read, pages, states, self.wanted(stop), inserts=self.inserts, adapter=adapter_of(self.salt)
        )


@dataclass
class Tally:
    """What the completions of one request count together.

    Attributes:
        drawn: tokens, of all of them together.
    """

    drawn: int = 0


class Generation(Job):
    """One completion of a request.

    Args:
        request: what was asked.
        index: which of its completions.
        sampler: draws its tokens.
        tokenizer: None where there is no text.
        max_positions: tokens that prompt and completion may have together, the last one drawn not counted.
        tally: that of the request.

    Attributes:
        sampler: as given.
        name: the request's id and the index.
        finish_reason: None while it goes on.
        siblings: the other completions, which take over what this one reads of the prompt.
        cache: what of the prompt had been read before.
        scores_prompt: whether the prompt's own log-probabilities are asked for. All of it is read then.
        awaits: another one, which is reading what this one begins with, and how far that goes.
        awaited: how far others wait for this one to read.
    """

    def __init__(
        self,
        request: Request,
        index: int,
        sampler: Sampler,
        tokenizer: Tokenizer | None,
        max_positions: int,
        tally: Tally,
    ) -> None:
        rank = (request.priority, request.arrived, index)
        super().__init__(list(request.tokens), len(request.tokens), rank, request.salt, request.inserts)
        sampling = request.sampling
        self.request, self.index, self.sampler = request, index, sampler
        self.name = f"{request.id} {index}"
        self.finish_reason: FinishReason | None = None
        self.siblings: list[Generation] = []
        self.cache = CacheUse()
        self.scores_prompt = sampling.prompt_logprobs is not None
        self.awaits: tuple[Generation, int] | None = None
        self.awaited = 0
        self._tally = tally
        self._text = TextStream(tokenizer, sampling.stop)
        self._limit = min(sampling.max_tokens, max_positions - self.goal + 1)
        self._admitted = self._prefilled = 0.0
        self._told = self.goal
        self._piece = ""
        self._logprobs: list[TokenLogprobs] = []
        self._of_prompt: list[TokenLogprobs | None] = [None]

    @property
    def drawn(self) -> int:
        """How many of the tokens were drawn."""
        return len(self.tokens) - self.goal

    @property
    def ahead(self) -> int:
        """Tokens of the prompt until it, or another that waits for it, can go on."""
        return (self.awaited if self.read < self.awaited else self.goal) - self.read

    @property
    def left(self) -> int:
        """How many more may be drawn."""
        return self._limit - self.drawn

    def admitted(self, holding: Holding) -> None:
        """It has its memory, with what the cache had of its prompt."""
        self.holding, self._admitted = holding, time.perf_counter()
        self._of_prompt = [None]
        if self.scores_prompt:  # what is read again has the same bits, so shared pages may be written
            self.read, self.cache = 0, CacheUse()
        else:
            self.read, self.cache = holding.length, holding.cache

    def forked(self, other: "Generation", holding: Holding) -> None:
        """It has its memory, with the whole prompt, which ``other`` has read."""
        self.holding, self.read, self.cache = holding, other.read, other.cache
        self._admitted = other._admitted

    def wanted(self, stop: int) -> int:
        """Those of the prompt's end alone."""
        return int(stop == self.goal)

    def reading(self, stop: int) -> Reading:
        """Read the part that ends at ``stop``, with the log-probabilities of the prompt's tokens if they are asked."""
        reading, top = super().reading(stop), self.request.sampling.prompt_logprobs
        if top is None:
            return reading
        return reading._replace(scores=PromptScores(self.tokens[self.read + 1 : min(stop + 1, self.goal)], top))

    def scored(self, scores: PromptScores) -> None:
        """The tokens that follow those of a part have their log-probabilities."""
        self._of_prompt += scores.found

    def take(self, draw: Draw) -> None:
        """Its next token was drawn."""
        token, logprobs = draw
        tokens, text = self.tokens, self._text
        tokens.append(token)
        drawn = len(tokens) - self.goal
        if drawn == 1:
            self._prefilled = time.perf_counter()
        self._tally.drawn += 1
        if logprobs is not None:
            self._logprobs.append(logprobs)
        if self.sampler.ends(token):
            self.finish_reason = "stop"
            return
        self._piece += text.push(token)
        if text.stopped:
            self.finish_reason = "stop"
        elif drawn == self._limit:
            self.finish_reason = "length"

    def delta(self, error: str | None = None) -> Delta:
        """What is new since the last one; ``error`` is what it ended with."""
        if self.finish_reason is not None:
            self._piece += self._text.finish()
        tokens, self._told = tuple(self.tokens[self._told :]), len(self.tokens)
        text, self._piece = self._piece, ""
        logprobs = ()
        if self._logprobs:
            logprobs, self._logprobs = tuple(self._logprobs), []
        of_prompt = None
        if self.scores_prompt and tokens and len(tokens) == self.drawn and not self.index:
            of_prompt, self._of_prompt = tuple(self._of_prompt), []
        return Delta(
            request=self.request.id,
            index=self.index,
            text=text,
            tokens=tokens,
            logprobs=logprobs,
            prompt_logprobs=of_prompt,
            read_tokens=min(self.read, self.goal),
            finish_reason=self.finish_reason,
            usage=None if self.finish_reason is None else self._usage(),
            error=error,
        )

    def _usage(self) -> RequestUsage:
        now = time.perf_counter()
        admitted = self._admitted or now
        prefilled = self._prefilled or now
        return RequestUsage(
            prompt_tokens=self.goal,
            completion_tokens=self._tally.drawn,
            cache=self.cache,
            queued_seconds=admitted - self.request.arrived,
            prefill_seconds=prefilled - admitted,
            decode_seconds=now - prefilled,
        )


def generations(
    request: Request,
    tokenizer: Tokenizer | None,
    max_positions: int,
    *,
    end_tokens: Collection[int],
    grammar: CompiledGrammar | None,
) -> list[Generation]:
    """The completions of a request. The first reads the prompt, and the others go on from there.

    Args:
        request: what was asked.
        tokenizer, max_positions: as of :class:`Generation`.
        end_tokens, grammar: as of :class:`leyden.serve.sampling.Sampler`.
    """
    tally = Tally()
    made = []
    for index in range(request.sampling.n):
        sampler = Sampler(request.sampling, request.tokens, index, end_tokens, grammar)
        made.append(Generation(request, index, sampler, tokenizer, max_positions, tally))
    made[0].siblings = made[1:]
    return made
