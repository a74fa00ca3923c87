"""Completions of prompts, drawn by an engine and graded by an environment."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from leyden.align.rewards.reward import Reward
from leyden.align.rollouts.call_limit import CallLimit, HangingEnvironmentError
from leyden.align.rollouts.environment import Environment, as_reward
from leyden.align.rollouts.prompts import Prompt, Prompts
from leyden.align.rollouts.settings import RolloutSettings
from leyden.align.rollouts.turns import Drawn, Replying, take_turns
from leyden.core.alarm import TimeIsUp
from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.core.sandbox.run import SandboxUnavailableError
from leyden.parallel import RankGroup
from leyden.serve import Engine, Sampling

_log = logger(__name__)


_NO_PROMPT = Prompt({}, (), "")


@dataclass(frozen=True)
class Rollout:
    """A completion with its reward.

    Attributes:
        prompt: what it completes.
        tokens: behind the prompt, the one that ended it included.
        learned: [tokens] bool, those that the model drew; the others are what the environment said between.
        log_probs: [tokens] float32, of each under the model's own distribution, as the engine computed it; 0 of others.
        text: without the token that ended it.
        turns: how many answers it has.
        is_cut: whether ``max_tokens`` ended it.
        out_of_turns: whether ``max_turns`` did.
        reward: its record.
        timed_out: whether it has none since the environment took too long.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    learned: np.ndarray
    log_probs: np.ndarray
    text: str
    turns: int
    is_cut: bool
    out_of_turns: bool
    reward: Reward
    timed_out: bool = False

    @property
    def num_drawn(self) -> int:
        """Tokens that the model drew."""
        return int(self.learned.sum())


@dataclass(frozen=True)
class Group:
    """The completions of one prompt.

    Attributes:
        place: of the prompt among all that are asked.
        rollouts: they.
    """

    place: int
    rollouts: Sequence[Rollout]

    @property
    def rewards(self) -> list[float]:
        """NaN where there is none."""
        return [math.nan if one.reward.reward is None else one.reward.reward for one in self.rollouts]

    @property
    def has_signal(self) -> bool:
        """Whether two rewards differ."""
        return len({reward for reward in self.rewards if not math.isnan(reward)}) > 1


@dataclass(frozen=True)
class Round:
    """The completions that are drawn with one version of the weights.

    Attributes:
        groups: those that are learned from, in the order of their places.
        drawn: all of them, those that were drawn and not kept among them.
        next_place: of the first prompt of the next round.
        seconds: that drawing took; grading is not counted.
    """

    groups: Sequence[Group]
    drawn: Sequence[Group]
    next_place: int
    seconds: float

    @property
    def rollouts(self) -> list[Rollout]:
        """Of the groups that are learned from, one group after another."""
        return [one for group in self.groups for one in group.rollouts]


def draw_round(
    engine: Engine,
    environment: Environment,
    prompts: Prompts,
    settings: RolloutSettings,
    *,
    place: int,
    seed: int,
    ranks: RankGroup | None = None,
) -> Round:
    """Complete ``prompts_per_step`` prompts ``group_size`` times each, and grade the completions.

    With ``redraws``, further prompts are asked in place of those whose group has no signal, as in the dynamic sampling
    of DAPO (arXiv 2503.14476, section 3.2), until there are enough or as often as that allows. What is then missing is
    filled up with groups without a signal, so that every round has as many.

    A completion that could not be finished, or whose reward could not be measured, has the reward None, and a warning
    says why.

    Args:
        engine: with the weights of the policy.
        environment: grades.
        prompts: are asked, from ``place`` on.
        settings: how.
        place: of the first prompt.
        seed: of all that is drawn; what is drawn of a prompt follows from it, the place and the weights.
        ranks: that draw together, each with an engine of the same weights; all call this, and get the same. None: this
            process alone.
    """
    kept: list[Group] = []
    drawn: list[Group] = []
    seconds = 0.0
    for _ in range(1 + settings.redraws):
        missing = settings.prompts_per_step - len(kept)
        if not missing:
            break
        asked = prompts.at(place, missing)
        groups, taken = _drawn_by_all(engine, environment, asked, settings, place, seed, ranks or RankGroup())
        place, seconds = place + missing, seconds + taken
        drawn += groups
        kept += [group for group in groups if group.has_signal]
    spare = [group for group in drawn if not group.has_signal]
    kept += spare[: settings.prompts_per_step - len(kept)]
    _tell_unmeasured([one for group in drawn for one in group.rollouts])
    return Round(sorted(kept, key=lambda group: group.place), drawn, place, seconds)


def _drawn_by_all(
    engine: Engine,
    environment: Environment,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    place: int,
    seed: int,
    ranks: RankGroup,
) -> tuple[list[Group], float]:
    """The graded completions of some prompts, dealt to the ranks one by one, and the longest time that took.

    Raises:
        UserError: on all ranks, where it is raised on one.
    """
    mine = range(ranks.rank, len(prompts), ranks.world)
    problem, groups, seconds = None, list[Group](), 0.0
    try:
        if mine:
            own = [prompts[n] for n in mine]
            groups, seconds = _draw(engine, environment, own, settings, [place + n for n in mine], seed)
    except UserError as error:
        if ranks.alone:
            raise
        problem = str(error)
    if ranks.alone:
        return groups, seconds
    told = ranks.gather((problem, [_told(group) for group in groups], seconds))
    for rank, (found, _, _) in enumerate(told):
        if found is not None:
            raise UserError(found if ranks.rank == rank else f"rank {rank}: {found}")
    heard = [_heard(group, prompts[group[0] - place]) for _, some, _ in told for group in some]
    return sorted(heard, key=lambda group: group.place), max(took for _, _, took in told)


def _told(group: Group) -> tuple[int, list[Rollout]]:
    """A group without its prompt, which every rank has and whose row may hold anything."""
    return group.place, [replace(one, prompt=_NO_PROMPT) for one in group.rollouts]


def _heard(told: tuple[int, list[Rollout]], prompt: Prompt) -> Group:
    return Group(told[0], [replace(one, prompt=prompt) for one in told[1]])


def _draw(
    engine: Engine,
    environment: Environment,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    places: Sequence[int],
    seed: int,
) -> tuple[list[Group], float]:
    """The graded completions of prompts at some places, and the seconds that drawing them took."""
    sampling = [
        Sampling(
            max_tokens=settings.max_tokens,
            n=settings.group_size,
            temperature=settings.temperature,
            seed=int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0] >> np.uint64(2)),
            logprobs=0,
        )
        for place in places
    ]
    started = time.perf_counter()
    completions = engine.generate([prompt.tokens for prompt in prompts], sampling)
    size = settings.group_size
    drawn = [Drawn(prompts[number // size]) for number in range(len(completions))]
    for one, made in zip(drawn, completions, strict=True):
        one.take(made)
    limit = CallLimit(settings.call_seconds)
    if settings.max_turns > 1:
        numbers = [places[number // size] * size + number % size for number in range(len(drawn))]
        take_turns(engine, replying(environment), drawn, settings, limit, seed=seed, places=numbers)
    seconds = time.perf_counter() - started
    return [
        Group(places[number], [graded(environment, one, limit) for one in drawn[number * size : (number + 1) * size]])
        for number in range(len(prompts))
    ], seconds


def replying(environment: Environment) -> Replying:
    """The same environment.

    Raises:
        UserError: it does not reply.
    """
    if not isinstance(environment, Replying):
        raise UserError(
            f"max_turns is above 1, and {type(environment).__name__} has no method reply(row, answers); give it one, "
            "or leave max_turns out."
        )
    return environment


def graded(environment: Environment, drawn: Drawn, limit: CallLimit) -> Rollout:
    """A rollout with its record: the reward is of the last answer.

    Raises:
        UserError: there is no sandbox for code, or the environment hangs.
    """
    reward, timed_out = Reward(None, {}, drawn.error or ""), drawn.timed_out
    if drawn.error is None:
        try:
            reward = _score(environment, drawn.prompt, drawn.answers[-1], limit)
        except TimeIsUp as late:
            reward, timed_out = Reward(None, {}, f"score: {late}"), True
    return Rollout(
        prompt=drawn.prompt,
        tokens=tuple(drawn.tokens),
        learned=np.array(drawn.learned, bool),
        log_probs=np.array(drawn.log_probs, np.float32),
        text=drawn.text,
        turns=len(drawn.answers),
        is_cut=drawn.is_cut,
        out_of_turns=drawn.out_of_turns,
        reward=reward,
        timed_out=timed_out,
    )


def _score(environment: Environment, prompt: Prompt, response: str, limit: CallLimit) -> Reward:
    """The record of a response; that of a broken row has no reward."""
    try:
        return as_reward(limit.call(environment.score, prompt.row, response))
    except (SandboxUnavailableError, TimeIsUp, HangingEnvironmentError):
        raise
    except UserError as error:
        return Reward(None, {}, str(error))


def _tell_unmeasured(rollouts: Sequence[Rollout]) -> None:
    reasons = [one.reward.reason for one in rollouts if one.reward.reward is None]
    if reasons:
        _log.warning(
            "%d of %d completions have no reward and are not learned from; of the first: %s",
            len(reasons),
            len(rollouts),
            reasons[0],
        )
