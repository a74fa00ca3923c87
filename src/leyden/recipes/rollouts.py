"""Stages of reinforcement learning: from ``[stage.rl]`` to what :mod:`leyden.train.run` trains."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from leyden.align.rollouts.batches import RolloutBatches, RoundShape, round_fingerprint
from leyden.align.rollouts.environment import Environment, open_environment
from leyden.align.rollouts.held_out import HeldOutReward
from leyden.align.rollouts.prompts import Prompts, prompts_of
from leyden.checkpoint import load, save
from leyden.checkpoint.adapter import CONFIG_FILE
from leyden.checkpoint.starting_model import StartingModel
from leyden.core.errors import UserError
from leyden.core.log import say
from leyden.model import HybridLM
from leyden.recipes.adapters import keep_adapters, reference_of
from leyden.recipes.answers import EVALUATED, answer_settings, held_out_prompts
from leyden.recipes.critic import critic_of, has_critic, policy_rate
from leyden.recipes.reference import reference_place
from leyden.recipes.schema import Recipe, TrainingStage
from leyden.tokenizer import Tokenizer
from leyden.train import StageRun, StepResult, TrainState
from leyden.train.metrics import StepLog
from leyden.train.observing import Finding
from leyden.train.whole import whole_model

ROLLOUTS = "rollouts.jsonl"
"""In the folder of a run: some of the completions that a stage of reinforcement learning drew."""

OF_NO_STAGE = -1
"""In place of the number of a stage."""


def open_prompts(recipe: Recipe, index: int, tokenizer: Tokenizer) -> tuple[Prompts, Environment]:
    """What stage ``index`` asks, and who grades the answers; how many prompts there are is said.

    Raises:
        UserError: there is no such environment or file, or no prompt that fits.
    """
    stage = recipe.stage[index]
    settings = stage.rollouts
    environment = open_environment(settings)
    if recipe.parallel.tp > 1 and settings.algorithm.kl_weight and not settings.algorithm.estimates:
        raise UserError(
            f'stage "{stage.name}": algorithm.kl = "{settings.algorithm.kl}" compares whole distributions, and with '
            '[parallel] tp a rank has the logits of its own words alone; take tp = 1, or an estimate such as kl = "k2".'
        )
    for what, name in (("teacher", settings.teacher), ("rl.critic.model", settings.critic.model)):
        if name is not None:
            check_reads_the_same(what, name, recipe, stage, tokenizer)
    longest, seed = stage.seq_len - settings.max_tokens, recipe.train.seed + index
    return Prompts(environment, tokenizer, longest=longest, seed=seed), environment


def check_reads_the_same(what: str, name: str, recipe: Recipe, stage: TrainingStage, tokenizer: Tokenizer) -> None:
    """Make sure that a teacher or a critic reads what the run's model writes; nothing of its weights is read.

    Raises:
        UserError: there is no such model, its tokens are others, or a sequence is longer than its positions.
    """
    found = StartingModel.find(name)
    config, own = found.config, found.tokenizer
    if config.vocab_size != recipe.model.vocab_size or (own and own.fingerprint != tokenizer.fingerprint):
        raise UserError(
            f"{what} {name} has other tokens than the model ({config.vocab_size:,} and {recipe.model.vocab_size:,}), "
            "and it is asked for each token that was drawn; take one with the same tokenizer."
        )
    if stage.seq_len > config.max_position_embeddings:
        raise UserError(
            f"{what} {name} has {config.max_position_embeddings:,} positions, and seq_len is {stage.seq_len:,}; lower "
            "it, or take another model."
        )


@contextmanager
def held_out_rewards(recipe: Recipe, tokenizer: Tokenizer) -> Iterator[list[tuple[int, HeldOutReward]]]:
    """What measures the reward on held-out prompts, by the number of the stage of reinforcement learning that has some.

    Those of ``[evaluate] environment`` are of no stage (``OF_NO_STAGE``), and measured at the end of each where there
    are several.

    Raises:
        UserError: there is no such environment or file.
    """
    found: list[tuple[int, HeldOutReward]] = []
    with ExitStack() as opened:
        for index, stage in enumerate(recipe.stage):
            if stage.rl is None or not stage.rl.held_out_prompts:
                continue
            environment: Any = open_environment(stage.rl)
            if hasattr(environment, "close"):
                opened.callback(environment.close)
            rows = environment.held_out() if hasattr(environment, "held_out") else ()
            aside = Counter[str]()
            prompts = prompts_of(rows, tokenizer, stage.seq_len - stage.rl.max_tokens, aside)
            asked = list(islice(prompts, stage.rl.held_out_prompts))
            if aside:
                say(f"held-out prompts of stage {stage.name} set aside: {dict(aside)}")
            if asked:
                how = {"dtype": getattr(torch, recipe.train.dtype), "every_steps": recipe.evaluate.every_steps}
                found.append((index, HeldOutReward(stage.name, asked, environment, stage.rl, tokenizer, **how)))
        if recipe.evaluate.environment is not None and len(recipe.stage) > 1:  # the finished model answers anyway
            asked, environment = held_out_prompts(recipe, tokenizer)
            if hasattr(environment, "close"):
                opened.callback(environment.close)
            settings = answer_settings(recipe)
            how = {"dtype": getattr(torch, recipe.train.dtype), "every_steps": 0}
            found.append((OF_NO_STAGE, HeldOutReward(EVALUATED, asked, environment, settings, tokenizer, **how)))
        yield found


def rollouts_fingerprint(recipe: Recipe, index: int, tokenizer: Tokenizer) -> str:
    """That of the batches of stage ``index``."""
    return round_fingerprint(open_prompts(recipe, index, tokenizer)[0], recipe.stage[index].rollouts)


def rollout_stage(
    recipe: Recipe, index: int, tokenizer: Tokenizer, state: TrainState, directory: Path, steps: int
) -> StageRun:
    """Stage ``index`` as training takes it.

    Args:
        recipe: settled.
        index: of the stage.
        tokenizer: the run's.
        state: whose model draws the completions and is trained.
        directory: the run's.
        steps: of the stage.
    """
    stage = recipe.stage[index]
    opened = _Opened(recipe, index, tokenizer, state, directory)
    return StageRun(
        name=stage.name,
        objective=stage.rollouts.objective(opened.reference),
        learning_rate=policy_rate(stage),
        steps=steps,
        seq_len=stage.seq_len,
        batches=opened.batches,
        micro_batches=opened.micro_batches,
        rope_theta=stage.rope_theta,
        rope_scaling=stage.rope_scaling,
        after_step=[opened.teach_critic] if has_critic(stage) else [],
        callbacks=[opened.check],
        step_facts=opened.step_facts,
    )


class _Opened:
    """The batches of a stage from when it begins: what the stage says of them before, it cannot know yet."""

    def __init__(self, recipe: Recipe, index: int, tokenizer: Tokenizer, state: TrainState, directory: Path) -> None:
        self._recipe, self._index, self._tokenizer = recipe, index, tokenizer
        self._state, self._directory = state, directory
        self._made: RolloutBatches | None = None
        self._model: HybridLM | None = None

    @contextmanager
    def batches(self) -> Iterator[RolloutBatches]:
        """Open them, in the stage alone."""
        stage, state = self._recipe.stage[self._index], self._state
        settings = stage.rollouts
        prompts, environment = open_prompts(self._recipe, self._index, self._tokenizer)
        with critic_of(self._recipe, self._index, state, self._tokenizer, self._directory) as critic:
            self._model = self._reference() if settings.algorithm.kl_weight else None
            with RolloutBatches(
                state,
                self._tokenizer,
                settings,
                prompts,
                environment,
                RoundShape(stage.seq_len, stage.micro_batch, self._recipe.train.seed + self._index, self._dtype),
                log=StepLog(self._directory / ROLLOUTS, last=state.step, writes=state.rank_group.rank == 0),
                stage=stage.name,
                reference=self._model if settings.algorithm.estimates else None,
                critic=critic,
            ) as made:
                self._made = made
                yield made
                self._made = self._model = None

    def reference(self) -> HybridLM:
        """The model that a divergence is from, while the stage lasts."""
        assert self._model is not None, "asked within a stage that has a divergence"
        return self._model

    def micro_batches(self, stage_step: int) -> int:
        """See :data:`leyden.train.batch_schedule.MicroBatches`."""
        return self._batches.micro_batches(stage_step)

    def step_facts(self) -> Finding:
        """See :data:`leyden.train.observing.StepFacts`."""
        return self._batches.step_facts()

    def check(self, state: TrainState, result: StepResult) -> None:
        """A callback, see :meth:`RolloutBatches.check`."""
        self._batches.check(state, result)

    def teach_critic(self, state: TrainState, result: StepResult) -> None:
        """A callback, see :meth:`RolloutBatches.teach_critic`."""
        self._batches.teach_critic(state, result)

    @property
    def _batches(self) -> RolloutBatches:
        assert self._made is not None, "the loop asks within the stage"
        return self._made

    def _reference(self) -> HybridLM:
        """The teacher, or the model as the stage began, in the dtype in which it computes; kept in the run's folder.

        Where adapters are trained, these alone are kept, and the reference has the model's own memory for the rest.

        Raises:
            UserError: the stage has begun, and it is not there.
        """
        stage, state = self._recipe.stage[self._index], self._state
        place = reference_place(self._directory, stage)
        model: Any = state.model
        lora = self._recipe.train.lora
        if stage.rollouts.teacher is not None:
            return load(stage.rollouts.teacher, dtype=self._dtype, device=model.norm.weight.device)[0]
        if state.stage != self._index or not state.stage_step:
            whole = model if state.rank_group.alone else whole_model(state, self._dtype)
            state.rank_group.first(
                lambda: save(whole, None, place) if lora is None else keep_adapters(whole, place, lora)
            )
        elif not any((place / name).exists() for name in ("config.json", CONFIG_FILE)):
            raise UserError(
                f"stage '{stage.name}': {place} is not there, the model that the stage began with; bring it back, or "
                "set kl_weight = 0."
            )
        if lora is not None:
            return reference_of(model, place)
        return load(place, device=model.norm.weight.device)[0]

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self._recipe.train.dtype)
