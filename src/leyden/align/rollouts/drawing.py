"""Completions of prompts, drawn by an engine and graded by an environment."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from leyden.align.rewards.reward import Reward
from leyden.align.rollouts.call_limit import BrokenEnvironmentError, CallLimit
from leyden.align.rollouts.environment import Environment, as_reward
from leyden.align.rollouts.prompts import Prompt, Prompts
from leyden.align.rollouts.settings import RolloutSettings
from leyden.align.rollouts.turns import Drawn, go_on
from leyden.core.alarm import TimeIsUp
from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.core.sandbox.run import SandboxUnavailableError
from leyden.parallel import RankGroup
from leyden.serve import Engine

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
        out_of_turns, out_of_rounds: whether ``max_turns`` did, or ``max_rounds``.
        reward: its record.
        kept: of the tokens that earlier weights drew, which come first: their
            log-probabilities under the policy that drew them, as the trainer computed them (0 where not learned).
        age: how many optimizer steps were taken since it was begun.
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
    out_of_rounds: bool = False
    kept: tuple[float, ...] = ()
    age: int = 0
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


Unfinished = Sequence[Drawn]
"""The rollouts of one prompt, of which some have not ended."""


@dataclass(frozen=True)
class Round:
    """The completions that are drawn with one version of the weights.

    Attributes:
        groups: those that are learned from, in the order of their places.
        drawn: all of them, those that were drawn and not kept among them.
        next_place: of the first prompt of the next round.
        seconds: that drawing took; grading is not counted.
        tokens: that the model drew.
        waiting: what is set aside to go on in the next round.
        continued: how many rollouts went on that were begun in an earlier round.
    """

    groups: Sequence[Group]
    drawn: Sequence[Group]
    next_place: int
    seconds: float
    tokens: int
    waiting: Sequence[Unfinished] = ()
    continued: int = 0

    @property
    def rollouts(self) -> list[Rollout]:
        """Of the groups that are learned from, one group after another."""
        return [one for group in self.groups for one in group.rollouts]


@dataclass(frozen=True)
class _Drawer:
    """Who draws and grades, and how: what all calls of a round have in common; ``step`` learns from it first."""

    engine: Engine
    environment: Environment
    settings: RolloutSettings
    seed: int
    step: int
    ranks: RankGroup


@dataclass(frozen=True)
class _Made:
    """What came of some groups: those that are whole, those that are not, and the seconds and tokens it took."""

    groups: Sequence[Group]
    unfinished: Sequence[Unfinished]
    seconds: float
    tokens: int


def draw_round(
    engine: Engine,
    environment: Environment,
    prompts: Prompts,
    settings: RolloutSettings,
    *,
    place: int,
    seed: int,
    step: int = 1,
    waiting: Sequence[Unfinished] = (),
    ranks: RankGroup | None = None,
) -> Round:
    """Complete ``prompts_per_step`` prompts ``group_size`` times each, and grade the completions.

    With ``redraws``, further prompts are asked in place of those whose group has no signal, as in the dynamic sampling
    of DAPO (arXiv 2503.14476, section 3.2), until there are enough or as often as that allows. What is then missing is
    filled up with groups without a signal, so that every round has as many.

    With ``round_tokens``, what is waiting goes on beside the new prompts, each rollout by so many tokens at most, and
    the groups of which every rollout has ended by then are learned from, however many there are. Where these are fewer
    than the mini-batches, as in the first round, the others go on at once, beside further prompts.

    A completion that could not be finished, or whose reward could not be measured, has the reward None, and a warning
    says why.

    Args:
        engine: with the weights of the policy.
        environment: grades.
        prompts: are asked, from ``place`` on.
        settings: how.
        place: of the first prompt.
        seed: of all that is drawn; what is drawn of a prompt follows from it, the place and the weights.
        step: the number of the optimizer step that is the first to learn from the round.
        waiting: what the round before has set aside; it is drawn further in place.
        ranks: that draw together, each with an engine of the same weights; all call this, and get the same. None: this
            process alone.
    """
    drawer = _Drawer(engine, environment, settings, seed, step, ranks or RankGroup())
    made = (_partly if settings.round_tokens else _whole)(drawer, prompts, place, waiting)
    _tell_unmeasured([one for group in made.drawn for one in group.rollouts])
    return made


def _whole(drawer: _Drawer, prompts: Prompts, place: int, waiting: Sequence[Unfinished]) -> Round:
    """A round whose rollouts are all drawn to their ends."""
    assert not waiting, "nothing is set aside where rollouts are whole"
    settings = drawer.settings
    kept: list[Group] = []
    drawn: list[Group] = []
    seconds, tokens = 0.0, 0
    for _ in range(1 + settings.redraws):
        missing = settings.prompts_per_step - len(kept)
        if not missing:
            break
        made = _drawn_by_all(drawer, _begun(drawer, prompts, place, missing))
        place, seconds, tokens = place + missing, seconds + made.seconds, tokens + made.tokens
        drawn += made.groups
        kept += [group for group in made.groups if group.has_signal]
    spare = [group for group in drawn if not group.has_signal]
    kept += spare[: settings.prompts_per_step - len(kept)]
    return Round(sorted(kept, key=lambda group: group.place), drawn, place, seconds, tokens)


def _partly(drawer: _Drawer, prompts: Prompts, place: int, waiting: Sequence[Unfinished]) -> Round:
    """A round whose rollouts go on by a number of tokens."""
    settings = drawer.settings
    continued = sum(not one.has_ended for group in waiting for one in group)
    unfinished = waiting
    groups: list[Group] = []
    seconds, tokens = 0.0, 0
    while len(groups) < settings.mini_batches:
        made = _drawn_by_all(drawer, [*unfinished, *_begun(drawer, prompts, place, settings.prompts_per_step)])
        unfinished, seconds, tokens = made.unfinished, seconds + made.seconds, tokens + made.tokens
        place += settings.prompts_per_step
        groups += made.groups
    groups.sort(key=lambda group: group.place)
    return Round(groups, groups, place, seconds, tokens, unfinished, continued)


def _begun(drawer: _Drawer, prompts: Prompts, place: int, count: int) -> list[Unfinished]:
    """``count`` groups from ``place`` on of which nothing is drawn."""
    members = range(drawer.settings.group_size)
    return [
        [Drawn(prompt, place + number, member, drawer.step) for member in members]
        for number, prompt in enumerate(prompts.at(place, count))
    ]


def _drawn_by_all(drawer: _Drawer, groups: Sequence[Unfinished]) -> _Made:
    """Groups that have gone on, dealt to the ranks one by one; the seconds are those of the slowest.

    Raises:
        UserError: on all ranks, where it is raised on one.
    """
    ranks = drawer.ranks
    mine = groups[ranks.rank :: ranks.world]
    problem, made = None, _Made([], [], 0.0, 0)
    try:
        if mine:
            made = _draw(drawer, mine)
    except UserError as error:
        if ranks.alone:
            raise
        problem = str(error)
    if ranks.alone:
        return made
    told = ranks.gather((problem, _told(made)))
    for rank, (found, _) in enumerate(told):
        if found is not None:
            raise UserError(found if ranks.rank == rank else f"rank {rank}: {found}")
    prompts = {group[0].place: group[0].prompt for group in groups}
    heard = [_heard(one, prompts) for _, one in told]
    return _Made(
        sorted((group for one in heard for group in one.groups), key=lambda group: group.place),
        sorted((group for one in heard for group in one.unfinished), key=lambda group: group[0].place),
        max(one.seconds for one in heard),
        sum(one.tokens for one in heard),
    )


def _told(made: _Made) -> _Made:
    """The same without prompts, which every rank has and whose rows may hold anything."""
    groups = [replace(g, rollouts=[replace(one, prompt=_NO_PROMPT) for one in g.rollouts]) for g in made.groups]
    return replace(made, groups=groups, unfinished=[_with(_NO_PROMPT, group) for group in made.unfinished])


def _heard(told: _Made, prompts: dict[int, Prompt]) -> _Made:
    groups = [replace(g, rollouts=[replace(one, prompt=prompts[g.place]) for one in g.rollouts]) for g in told.groups]
    return replace(told, groups=groups, unfinished=[_with(prompts[group[0].place], group) for group in told.unfinished])


def _with(prompt: Prompt, group: Unfinished) -> Unfinished:
    return [replace(one, prompt=prompt) for one in group]


def _draw(drawer: _Drawer, groups: Sequence[Unfinished]) -> _Made:
    """Groups that have gone on by what a round allows; those of which every rollout has ended are graded."""
    settings, going = drawer.settings, [one for group in groups for one in group if not one.has_ended]
    before = sum(sum(one.learned) for one in going)
    started = time.perf_counter()
    budget = settings.round_tokens or None
    limit = CallLimit(settings.call_seconds)
    go_on(drawer.engine, drawer.environment, going, settings, limit, seed=drawer.seed, budget=budget)
    seconds = time.perf_counter() - started
    for one in going:
        one.end_round(settings.max_rounds, drawer.engine.tokenizer)
    whole = [all(one.has_ended for one in group) for group in groups]
    finished = [
        Group(group[0].place, [graded(drawer.environment, one, limit, drawer.step) for one in group])
        for group, is_whole in zip(groups, whole, strict=True)
        if is_whole
    ]
    rest = [group for group, is_whole in zip(groups, whole, strict=True) if not is_whole]
    return _Made(finished, rest, seconds, sum(sum(one.learned) for one in going) - before)


def graded(environment: Environment, drawn: Drawn, limit: CallLimit, step: int = 1) -> Rollout:
    """A rollout with its record: the reward is of the last answer. ``step`` is the first to learn from it.

    Raises:
        UserError: there is no sandbox for code, or the environment is broken.
    """
    if drawn.error is not None:
        return as_rollout(drawn, Reward(None, {}, drawn.error), step)
    try:
        return as_rollout(drawn, _score(environment, drawn.prompt, drawn.answers[-1], limit), step)
    except TimeIsUp as late:
        return replace(as_rollout(drawn, Reward(None, {}, f"score: {late}"), step), timed_out=True)


def as_rollout(drawn: Drawn, reward: Reward, step: int = 1) -> Rollout:
    """A rollout with this reward."""
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
        out_of_rounds=drawn.out_of_rounds,
        kept=tuple(drawn.kept),
        age=step - drawn.began,
        timed_out=drawn.timed_out,
    )


def _score(environment: Environment, prompt: Prompt, response: str, limit: CallLimit) -> Reward:
    """The record of a response; that of a broken row has no reward."""
    try:
        return as_reward(limit.call(environment.score, prompt.row, response))
    except (SandboxUnavailableError, TimeIsUp, BrokenEnvironmentError):
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
