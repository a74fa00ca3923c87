"""The prompts of an environment as tokens, and the order in which they come."""

import hashlib
import json
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
    """

    row: Mapping[str, Any]
    tokens: tuple[int, ...]
    text: str


def prompts_of(
    rows: Iterable[Mapping[str, Any]], tokenizer: Tokenizer, longest: int, aside: Counter[str]
) -> Iterator[Prompt]:
    """The prompts of rows that have at most ``longest`` tokens; ``aside`` counts the others by reason."""
    for row in rows:
        try:
            messages = prompt_of(row)
            tokens = tuple(tokenizer.encode_chat(messages))
        except (Problem, UserError) as problem:
            aside[problem.reason if isinstance(problem, Problem) else "refused by the chat template"] += 1
            continue
        if len(tokens) > longest:
            aside[f"longer than {longest} tokens"] += 1
            continue
        yield Prompt(row, tokens, str(messages[-1]["content"]))


class Prompts:
    """The prompts that fit, in an order that is drawn anew for every pass over them.

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
        say(f"prompts: {len(self._prompts):,}; set aside: {reasons or 'none'}")
        text = json.dumps([[prompt.row, prompt.tokens] for prompt in self._prompts], default=repr, sort_keys=True)
        self.fingerprint = hashlib.sha256(f"{seed} {text}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._prompts)

    def at(self, place: int, count: int) -> list[Prompt]:
        """``count`` prompts from ``place`` on, in an endless row in which every pass has each once."""
        places = range(place, place + count)
        orders = {epoch: self._order(epoch) for epoch in {one // len(self) for one in places}}
        return [self._prompts[orders[one // len(self)][one % len(self)]] for one in places]

    def _order(self, epoch: int) -> list[int]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self)).tolist()
