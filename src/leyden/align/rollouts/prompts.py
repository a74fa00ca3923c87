"""The prompts of an environment as tokens, and the order in which they come."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from leyden.align.chats.chat import prompt_of
from leyden.align.rollouts.environment import Environment
from leyden.core.errors import UserError
from leyden.core.log import say
from leyden.data.readers.problem import Problem
from leyden.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        row: as the environment gave it.
        tokens: what the engine reads, up to where the answer begins.
        text: its last message, for people.
        weight: how often it is drawn, relative to the others.
    """

    row: Mapping[str, Any]
    tokens: tuple[int, ...]
    text: str
    weight: float = 1.0


def prompts_of(
    rows: Iterable[Mapping[str, Any]], tokenizer: Tokenizer, longest: int, aside: Counter[str]
) -> Iterator[Prompt]:
    """The prompts of rows that have at most ``longest`` tokens; ``aside`` counts the others by reason."""
    for row in rows:
        if not isinstance(row, Mapping):
            aside["no object with fields"] += 1
            continue
        try:
            messages, weight = prompt_of(row), _weight_of(row)
            tokens = tuple(tokenizer.encode_chat(messages))
        except (Problem, UserError) as problem:
            aside[problem.reason if isinstance(problem, Problem) else "refused by the chat template"] += 1
            continue
        if len(tokens) > longest:
            aside[f"longer than {longest} tokens"] += 1
            continue
        yield Prompt(row, tokens, str(messages[-1]["content"]), weight)


class Prompts:
    """The prompts that fit, in an order that is drawn anew for every pass over them.

    A row may have a ``weight``, as those of ``leyden prompts`` have: in a pass over N prompts one of weight w is drawn
    N w / W times, with W the sum of all weights, and where that is no whole number the one below or above it, so that
    the mean over passes is right. Without weights, or with equal ones, each is drawn once.

    Args:
        environment: whose they are.
        tokenizer: whose chat template lays them out.
        longest: tokens of the longest that is taken.
        seed: of the order.

    Attributes:
        fingerprint: of the prompts and the order; others have another.

    Raises:
        UserError: the tokenizer has no chat template, or there is no prompt that fits.
    """

    def __init__(self, environment: Environment, tokenizer: Tokenizer, *, longest: int, seed: int) -> None:
        if tokenizer.chat_template is None:
            raise UserError(
                "Prompts need a chat template, and the run's tokenizer has none; add a chat_template.jinja to its "
                "directory."
            )
        aside = Counter[str]()
        self._seed, self._prompts = seed, list(prompts_of(environment.prompts(), tokenizer, longest, aside))
        aside.update(reject.reason for reject in getattr(environment, "rejects", ()))
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in aside.most_common())
        if not self._prompts:
            raise UserError(
                f"There is no prompt to begin from (set aside: {reasons or 'none'}); each must fit into seq_len with "
                "max_tokens behind it."
            )
        weights = np.array([prompt.weight for prompt in self._prompts])
        if not weights.sum():
            raise UserError("All prompts have weight 0, so that none would be drawn; leave the weights out.")
        self._ends = None if (weights == weights[0]).all() else np.cumsum(weights) * (len(weights) / weights.sum())
        say(f"prompts: {len(self._prompts):,}; set aside: {reasons or 'none'}")
        text = json.dumps([[prompt.row, prompt.tokens] for prompt in self._prompts], default=repr, sort_keys=True)
        self.fingerprint = hashlib.sha256(f"{seed} {text}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._prompts)

    def at(self, place: int, count: int) -> list[Prompt]:
        """``count`` prompts from ``place`` on, in an endless row: every pass has each once, or by its weight."""
        places = range(place, place + count)
        orders = {epoch: self._order(epoch) for epoch in {one // len(self) for one in places}}
        return [self._prompts[orders[one // len(self)][one % len(self)]] for one in places]

    def _order(self, epoch: int) -> list[int]:
        drawn = np.random.default_rng([self._seed, epoch])
        if self._ends is None:
            return drawn.permutation(len(self)).tolist()
        # Systematic sampling: one number for all, so that no count is further than 1 from what its weight says.
        upto = np.floor(self._ends + drawn.random()).astype(np.int64)
        upto[-1] = len(self)  # exactly, whatever the sum was rounded to
        return drawn.permutation(np.repeat(np.arange(len(self)), np.diff(upto, prepend=0))).tolist()


def _weight_of(row: Mapping[str, Any]) -> float:
    """The weight of a row, 1 where it has none.

    Raises:
        Problem: it is no finite number from 0 on.
    """
    given = row.get("weight")
    if given is None:
        return 1.0
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given) or given < 0:
        raise Problem("bad weight", f"a weight is a finite number, 0 or more; given: {given!r:.80}")
    return float(given)
