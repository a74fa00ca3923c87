"""Labels of steps by completions: a step is right if solutions that begin with it reach the right answer.

The chance of a step is the share of completions, drawn behind it, that are right (Math-Shepherd, arXiv 2312.08935,
section 3.3). No completion is drawn behind the last step: its chance is 1 or 0, as the solution is right or not.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leyden.align.process_rewards.solutions import steps_between
from leyden.align.prompts.rows import PromptRow
from leyden.align.sampling.pivots import Policy
from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.data.label.answers import Answers
from leyden.data.label.language_model import Reply
from leyden.serve import Sampling

_AT_ONCE = 16
"""Solutions whose completions are drawn together, and lost together where a run is killed."""


@dataclass(frozen=True)
class CompletionSettings:
    """How completions are drawn.

    Attributes:
        samples: behind each step.
        max_tokens: of a whole solution.
        temperature: at which they are drawn.
        least: a step is right if a larger share of its completions is. At 0 one right completion is enough
            (Math-Shepherd's hard estimation).
        seed: of all that is drawn.

    Raises:
        UserError: a number out of its range.
    """

    samples: int = 8
    max_tokens: int = 1024
    temperature: float = 1.0
    least: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= 128 or self.max_tokens < 1 or self.temperature <= 0 or not 0 <= self.least < 1:
            raise UserError(
                "samples is from 1 to 128, max-tokens is 1 or more, the temperature is above 0, and least-chance is a "
                "share from 0 to below 1."
            )


@dataclass(frozen=True)
class Candidate:
    """A solution that is to be labelled.

    Attributes:
        prompt: what it solves, with what a response is graded by.
        begun: the solution up to the end of each of its steps, with the white space behind it; the last is all of it.
        is_right: whether its answer is.
    """

    prompt: PromptRow
    begun: tuple[str, ...]
    is_right: bool

    @property
    def steps(self) -> tuple[str, ...]:
        """Their texts."""
        return steps_between(self.begun)


def step_chances(
    candidates: Sequence[Candidate],
    policy: Policy,
    grade: Callable[[dict[str, Any]], float | None],
    settings: CompletionSettings,
    answers: Path,
) -> list[list[float] | str]:
    """Of each solution the chance of every step; in place of them, why there are none.

    Args:
        candidates: any.
        policy: completes.
        grade: the reward of a row with ``response``; a completion with a reward of 1 is right.
        settings: how.
        answers: a folder; what was found of a solution is kept there, and not drawn again.

    Raises:
        UserError: the tokenizer has no chat template, or the engine cannot finish a completion.
    """
    found: list[list[float] | str] = [[] for _ in candidates]
    with Answers(answers) as kept, progress("steps", len(candidates), "solutions") as bar:
        missing: list[tuple[int, str]] = []
        for place, one in enumerate(candidates):
            key = _key(one, policy, settings)
            answer = kept.get(key)
            if answer is None:
                missing.append((place, key))
            else:
                found[place] = json.loads(answer.text)
        bar.advance(len(candidates) - len(missing))
        for start in range(0, len(missing), _AT_ONCE):
            group = missing[start : start + _AT_ONCE]
            chances = _drawn([candidates[place] for place, _ in group], policy, grade, settings)
            for (place, key), one in zip(group, chances, strict=True):
                kept.put(key, Reply(json.dumps(one)))
                found[place] = one
                bar.advance(1)
    return found


def first_wrong(chances: Sequence[float], least: float) -> int:
    """The number, from 1, of the first step whose chance is ``least`` or smaller; 0: there is none."""
    return next((number for number, chance in enumerate(chances, 1) if chance <= least), 0)


def _drawn(
    candidates: Sequence[Candidate],
    policy: Policy,
    grade: Callable[[dict[str, Any]], float | None],
    settings: CompletionSettings,
) -> Iterator[list[float] | str]:
    """The chances of each of some candidates, whose completions are drawn together."""
    positions = policy.engine.model.config.max_position_embeddings
    asked: list[tuple[list[int], str, int]] = []
    fits = []
    for one in candidates:
        tokens = policy.tokenizer.encode_chat(list(one.prompt.messages))
        begun = [(policy.tokenizer.encode(text), text) for text in one.begun[:-1]]
        longest = max((len(ids) for ids, _ in begun), default=0)
        fits.append(len(tokens) + longest < positions and longest < settings.max_tokens)
        if fits[-1]:
            asked += [([*tokens, *ids], text, settings.max_tokens - len(ids)) for ids, text in begun]
    how = [
        Sampling(
            max_tokens=room,
            n=settings.samples,
            temperature=settings.temperature,
            seed=_number(settings.seed, prompt),
        )
        for prompt, _, room in asked
    ]
    made = iter(policy.engine.generate([prompt for prompt, _, _ in asked], how) if asked else ())
    texts = iter(asked)
    for one, fitting in zip(candidates, fits, strict=True):
        if not fitting:
            yield f"longer than {settings.max_tokens} tokens, or than the model's {positions} positions"
            continue
        chances = []
        for _ in one.begun[:-1]:
            _, text, _ = next(texts)
            completions = [next(made) for _ in range(settings.samples)]
            for completion in completions:
                if completion.error is not None:
                    raise UserError(f"the model did not finish a completion: {completion.error}.")
            rewards = [grade({**one.prompt.row, "response": text + completion.text}) for completion in completions]
            chances.append(sum(reward is not None and reward >= 1 for reward in rewards) / len(rewards))
        yield [*chances, float(one.is_right)]


def _key(one: Candidate, policy: Policy, settings: CompletionSettings) -> str:
    """32 hexadecimal digits of all that the chances of a solution follow from."""
    drawn = {name: value for name, value in asdict(settings).items() if name != "least"}
    told = [policy.identity, drawn, one.prompt.row, one.begun, one.is_right]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=repr).encode()).hexdigest()[:32]


def _number(seed: int, tokens: Sequence[int]) -> int:
    """A seed of what is drawn behind some tokens, below 2^31."""
    digest = hashlib.sha256(f"{seed} {list(tokens)}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
