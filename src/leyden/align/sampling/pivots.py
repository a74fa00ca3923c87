"""``leyden pivots``: pairs of single tokens at the pivotal tokens of a model's own responses (Phi-4, arXiv 2412.08905,
section 4.3), with chances of success that are estimated by the engine's completions.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leyden.align.preference.pivotal import pivotal_pair, pivotal_tokens
from leyden.align.prompts.rows import PromptRow
from leyden.align.rewards.mathematics import MathReward
from leyden.align.rewards.rows import TOGETHER, RowSettings, grader
from leyden.align.sampling.writing import write_json, write_rows
from leyden.core.errors import UserError
from leyden.core.log import logger, progress
from leyden.core.sandbox.probe import try_to_escape
from leyden.data.label.answers import Answers
from leyden.data.label.language_model import Reply
from leyden.serve import Completion, Engine, Sampling
from leyden.tokenizer import Tokenizer

_log = logger(__name__)

_OTHERS = 4
"""Tokens that are tried in place of a pivot: those that the model drew there the most often."""


@dataclass(frozen=True)
class PivotSettings:
    """How pivotal tokens are searched for.

    Attributes:
        samples: completions by which one chance of success is estimated.
        max_tokens: of a response.
        temperature: at which all is drawn.
        least_gap: by how much a pivotal token changes the chance, and by how much the two tokens of a pair differ.
        lowest, highest: a prompt whose chance lies outside is left out (Phi-4: 0.2 and 0.8).
        seed: of all that is drawn.

    Raises:
        UserError: a number out of its range.
    """

    samples: int = 16
    max_tokens: int = 1024
    temperature: float = 1.0
    least_gap: float = 0.2
    lowest: float = 0.2
    highest: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.samples <= 128 or self.max_tokens < 1 or self.temperature <= 0:
            raise UserError("samples is from 2 to 128, max-tokens is 1 or more, and the temperature is above 0.")
        if not 0 < self.least_gap <= 1 or not 0 <= self.lowest <= self.highest <= 1:
            raise UserError(
                "least-gap is above 0 and at most 1; lowest and highest are chances, from 0 to 1, in order."
            )


@dataclass(frozen=True)
class Policy:
    """Whose responses are searched.

    Attributes:
        engine, tokenizer: of the model.
        identity: a digest of its weights, for provenance and for what is kept.
    """

    engine: Engine
    tokenizer: Tokenizer
    identity: str


def build_pivots(
    prompts: Sequence[PromptRow], policy: Policy, rewards: RowSettings, settings: PivotSettings, folder: Path
) -> dict[str, Any]:
    """Search a right and a wrong response to each prompt, and write ``pairs.jsonl`` and ``report.json``.

    What was found of a prompt is kept in ``answers/``; the same call after a kill goes on with the next prompt.

    Args:
        prompts: of two with one id the first is asked.
        policy: draws.
        rewards: of a kind that grades a row by itself; a chance of success is a mean reward.
        settings: how.
        folder: is made if it is not there.

    Returns:
        The report: counts by what became of prompts, pivots, pairs, completions drawn, and where it is all from.

    Raises:
        UserError: the kind looks at several rows at once, the tokenizer has no chat template, or there is no sandbox
            and it is code.
    """
    if rewards.kind in TOGETHER:
        raise UserError(
            f"the reward '{rewards.kind}' looks at several responses at once; pivots need one of the others."
        )
    if rewards.kind == "code":
        try_to_escape()
    made = {"model": policy.identity, "reward": rewards.kind, **asdict(settings)}
    different = {prompt.id: prompt for prompt in reversed(prompts)}
    found: list[Mapping[str, Any]] = []
    mathematics = MathReward(rewards.seconds)
    grade = grader(rewards, mathematics)
    with Answers(folder / "answers") as answers, progress("pivotal tokens", len(different), "prompts") as bar:
        for prompt in reversed(different.values()):
            key = hashlib.sha256(json.dumps([made, prompt.id, prompt.row], sort_keys=True, default=repr).encode())
            kept = answers.get(key.hexdigest()[:32])
            one = _search(prompt, policy, grade, settings) if kept is None else json.loads(kept.text)
            if kept is None:
                answers.put(key.hexdigest()[:32], Reply(json.dumps(one)))
            found.append(one)
            bar.advance(1)
    mathematics.close()
    pairs = [{**pair, "model": policy.identity} for one in found for pair in one["pairs"]]
    report = {
        "prompts": dict(Counter(one["fate"] for one in found)),
        "pivots": sum(one["pivots"] for one in found),
        "pairs": len(pairs),
        "completions": sum(one["completions"] for one in found),
        **made,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "pairs.jsonl", pairs)
    write_json(folder / "report.json", report)
    return report


def _search(
    prompt: PromptRow, policy: Policy, grade: Callable[[dict[str, Any]], Any], settings: PivotSettings
) -> dict[str, Any]:
    """What became of a prompt: its ``fate``, ``pairs``, and how many ``pivots`` and drawn ``completions``."""
    chances = _Chances(prompt, policy, grade, settings)
    pairs, pivots = [], 0
    fate = chances.fate()
    if fate == "searched":
        for response in chances.right_and_wrong():
            for pivot in pivotal_tokens(response, chances, least_gap=settings.least_gap):
                pivots += 1
                pair = pivotal_pair(
                    prompt.row["prompt"],
                    response,
                    pivot,
                    chances.others(response[: pivot.place]),
                    chances,
                    policy.tokenizer,
                    least_gap=settings.least_gap,
                )
                if pair is not None and pair not in pairs:
                    pairs.append(pair)
    return {"fate": fate, "pairs": pairs, "pivots": pivots, "completions": chances.num_drawn}


class _Chances:
    """Chances of success of what a response to one prompt may begin with; each is estimated once.

    Attributes:
        num_drawn: completions so far.
    """

    def __init__(
        self, prompt: PromptRow, policy: Policy, grade: Callable[[dict[str, Any]], Any], settings: PivotSettings
    ) -> None:
        self._prompt, self._policy, self._grade, self._settings = prompt, policy, grade, settings
        self._asked = tuple(policy.tokenizer.encode_chat(list(prompt.messages)))
        self._drawn: dict[tuple[int, ...], list[tuple[tuple[int, ...], bool, float | None]]] = {}
        self.num_drawn = 0

    def __call__(self, prefix: Sequence[int]) -> float:
        """The mean reward of completions; what cannot be graded counts as 0."""
        return float(np.mean([reward or 0.0 for _, _, reward in self._completions(prefix)]))

    def fate(self) -> str:
        """``searched``, or why the prompt is not."""
        positions = self._policy.engine.model.config.max_position_embeddings
        if len(self._asked) + self._settings.max_tokens > positions:
            return f"too long for {positions} positions with max-tokens behind it"
        if any(reward is None for _, _, reward in self._completions(())):
            return "no reward"
        chance = self(())
        if not self._settings.lowest <= chance <= self._settings.highest:
            return "too easy" if chance > self._settings.highest else "too hard"
        return "searched"

    def right_and_wrong(self) -> Iterator[tuple[int, ...]]:
        """The first response with more than the mean reward and the first with less, of those that end."""
        mean = self(())
        for is_sought in (lambda reward: reward > mean, lambda reward: reward < mean):
            yield from [
                tokens for tokens, ends, reward in self._completions(()) if ends and tokens and is_sought(reward)
            ][:1]

    def others(self, prefix: Sequence[int]) -> list[int]:
        """The tokens that the model drew the most often behind a prefix."""
        first = Counter(tokens[0] for tokens, _, _ in self._completions(prefix) if tokens)
        return [token for token, _ in first.most_common(_OTHERS)]

    def _completions(self, prefix: Sequence[int]) -> list[tuple[tuple[int, ...], bool, float | None]]:
        """Of each completion its tokens without the end, whether it ends, and the reward of the whole response."""
        begun = tuple(prefix)
        if begun not in self._drawn:
            how = Sampling(
                max_tokens=max(1, self._settings.max_tokens - len(begun)),
                n=self._settings.samples,
                temperature=self._settings.temperature,
                seed=self._seed(begun),
            )
            made = self._policy.engine.generate([[*self._asked, *begun]], how)
            self._drawn[begun] = [self._graded(begun, one) for one in made]
            self.num_drawn += len(made)
        return self._drawn[begun]

    def _graded(self, begun: tuple[int, ...], made: Completion) -> tuple[tuple[int, ...], bool, float | None]:
        if made.error is not None:
            raise UserError(f"the model did not finish a response: {made.error}.")
        ends = made.finish_reason == "stop"
        tokens = made.tokens[:-1] if ends else made.tokens
        response = self._policy.tokenizer.decode([*begun, *tokens])
        try:
            reward = self._grade({**self._prompt.row, "response": response}).reward
        except UserError as error:
            _log.warning("%s: %s", self._prompt.place, error)
            reward = None
        return tokens, ends, reward

    def _seed(self, begun: tuple[int, ...]) -> int:
        text = json.dumps([self._settings.seed, self._prompt.id, begun])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
