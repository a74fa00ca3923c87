"""The critic of a stage of reinforcement learning: what it begins as, and where it is kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from leyden.align.rollouts.critic import AfterCritic, Critic
from leyden.checkpoint.starting_model import StartingModel
from leyden.core.log import say
from leyden.core.quantities import bytes_text, count_text
from leyden.data.groups import folder_of
from leyden.model import ModelConfig, count_model
from leyden.recipes.schema import Recipe, TrainingStage
from leyden.tokenizer import Tokenizer
from leyden.train import LearningRate, TrainState, build_state, save_trained
from leyden.train.generators import generators_kept

CRITICS = "critic"
"""In the folder of a run: of each stage with a critic, what that has become: a model with a score head."""

_SCORE = "score.weight"


def has_critic(stage: TrainingStage) -> bool:
    """Whether a stage trains a critic beside its policy."""
    return stage.rl is not None and stage.rl.algorithm.baseline == "critic"


def policy_rate(stage: TrainingStage) -> LearningRate:
    """The rate of the policy, which may have to wait for its critic."""
    alone = stage.rollouts.critic.alone_steps
    if not alone:
        return stage
    said = {name: getattr(stage, name) for name in LearningRate.model_fields}
    return AfterCritic(**said, alone_steps=alone)


@contextmanager
def critic_of(
    recipe: Recipe, index: int, state: TrainState, tokenizer: Tokenizer, directory: Path
) -> Iterator[Critic | None]:
    """The critic of stage ``index``, in the checkpoints of ``state`` while the stage lasts; at its end it is written.

    Args:
        recipe: settled.
        index: of the stage; without a critic there is None.
        state: of the policy. All ranks of its group call this.
        tokenizer: the run's.
        directory: the run's.

    Raises:
        UserError: there is no such model to begin as, or the stage was begun without a critic.
    """
    stage = recipe.stage[index]
    if not has_critic(stage):
        yield None
        return
    settings, steps = stage.rollouts.critic, stage.total_steps
    assert steps is not None, "settled before training"
    start = None if settings.model is None else StartingModel.find(settings.model)
    own = _state_of(recipe, state, start)

    def begin() -> None:
        if start is None:
            _copy(state, own)
        else:
            own.begin_from(start)
        if start is None or not start.config.score_head:
            _without_opinion(own)

    goes_on = state.stage == index and state.stage_step > 0
    state.join(CRITICS, own, begin, goes_on=goes_on)
    try:
        scale = 1.0 if settings.lr is None else settings.lr / stage.lr
        yield Critic(
            own,
            settings,
            stage.rollouts.algorithm,
            lambda step: scale * stage.lr_at(step, steps),
            clip_norm=recipe.train.clip_norm,
            max_skipped_steps=recipe.train.max_skipped_steps,
        )
    finally:
        state.leave(CRITICS)
    save_trained(own, tokenizer, directory / CRITICS / folder_of(stage.name))


def _state_of(recipe: Recipe, policy: TrainState, start: StartingModel | None) -> TrainState:
    """A model with a score head under the plan of the policy, and its optimizer; the generators stay as they were."""
    config: ModelConfig = policy.model.config
    if start is not None:
        config = start.config
    with generators_kept():
        return build_state(
            config.model_copy(update={"score_head": True}),
            recipe.train.model_copy(update={"async_checkpoint": False}),  # its tensors lie in the policy's checkpoints
            row_tokens=max(stage.seq_len for stage in recipe.stage),
            rank_group=policy.rank_group,
            parallel_config=recipe.parallel,
        )


def _copy(policy: TrainState, critic: TrainState) -> None:
    """Give a critic of the same shape and plan the weights of the policy."""
    masters = critic.optimizer.masters()
    with torch.no_grad():
        for name, master in policy.optimizer.masters().items():
            masters[name].copy_(master)
    critic.optimizer.round_into_model()


def _without_opinion(critic: TrainState) -> None:
    """A score head of zeros: every value is 0 until it has learned."""
    with torch.no_grad():
        critic.optimizer.masters()[_SCORE].zero_()
    critic.optimizer.round_into_model()


def tell_critic(recipe: Recipe, stage: TrainingStage) -> None:
    """Say how large the critic of a stage is, and what memory it takes beside the policy; nothing, if it has none."""
    if not has_critic(stage):
        return
    name = stage.rollouts.critic.model
    config = recipe.model if name is None else StartingModel.find(name).config
    weights = count_model(config.model_copy(update={"score_head": True})).parameters
    say(
        f"stage '{stage.name}': a critic of {count_text(weights)} weights, which begins as {name or 'the policy'}; its "
        f"float32 weights, gradients and moments take {bytes_text(weights * 16)} over all ranks"
    )
