"""The batches of a recipe's stages, and what is checked of all of them before the first step of any."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leyden.align.chats.batches import ChatBatches, MixedChats, fit_chats
from leyden.align.preference.batches import PairBatches, fit_pairs
from leyden.align.process_rewards.batches import SolutionBatches, fit_solutions
from leyden.core.errors import UserError
from leyden.core.log import say
from leyden.data import PackedBatches, TokenShards
from leyden.data.loader.mixed import MixedBatches
from leyden.data.loader.mixture_schedule import MixturePoint, MixtureSchedule, TimedMixture
from leyden.data.loader.packing import PackedBatchIterator
from leyden.model import count_model
from leyden.recipes.answers import held_out_prompts
from leyden.recipes.critic import tell_critic
from leyden.recipes.filling import rearranged
from leyden.recipes.objectives import ON_PROMPTS, TRAINS_ON
from leyden.recipes.prepare import Prepared
from leyden.recipes.rollouts import open_prompts
from leyden.recipes.schema import Recipe, TrainingStage


def make_batches(
    recipe: Recipe,
    index: int,
    prepared: Prepared,
    plans: Path | None = None,
    reference: np.ndarray | None = None,
) -> PackedBatchIterator:
    """The batches of stage ``index``, from their beginning.

    Args:
        recipe: whose stage it is.
        index: of the stage.
        prepared: the tokens.
        plans: a directory that keeps best-fit plans; None: in memory.
        reference: of a stage on pairs, the log-probabilities of all answers that its loss compares with, as of
            :class:`~leyden.align.preference.batches.PairBatches`; nothing else of a batch depends on them.

    Raises:
        UserError: the tokens cannot give such batches.
    """
    stage = recipe.stage[index]
    shards, seed = _shards(recipe, index, prepared), recipe.train.seed + index
    how: dict[str, Any] = {"seq_len": stage.seq_len, "batch_tokens": stage.micro_batch, "seed": seed, "plans": plans}
    too_long, rows = (stage.data or recipe.data).too_long, TRAINS_ON.get(stage.objective)
    if rows == "chats":
        chats = fit_chats(shards["all"], stage.seq_len, too_long)
        if stage.mixture is not None:
            return MixedChats(chats, stage.normalise, _mixture(recipe, index, prepared), **how)
        return ChatBatches(chats, stage.normalise, **how)
    if rows == "preferences":
        return PairBatches(fit_pairs(shards["all"], stage.seq_len, too_long), reference=reference, **how)
    if rows == "solutions":
        return SolutionBatches(fit_solutions(shards["all"], stage.seq_len, too_long), **how)
    if stage.mixture is None and len(shards) == 1:
        return PackedBatches(*shards.values(), packing=stage.packing, **how)
    return MixedBatches(shards, _mixture(recipe, index, prepared), **how)


def _shards(recipe: Recipe, index: int, prepared: Prepared) -> Mapping[str, TokenShards]:
    """What stage ``index`` is trained on, by group."""
    stage = recipe.stage[index]
    return rearranged(prepared.of(stage).shards, stage.fim, prepared.tokenizer, recipe.train.seed)


def _mixture(recipe: Recipe, index: int, prepared: Prepared, *, is_before: bool = False) -> TimedMixture:
    """What stage ``index`` mixes, with every mark in tokens; without a mixture, each group gives what it has.

    Of the stage before another (``is_before``) the end alone matters, which no transition reaches.
    """
    stage = recipe.stage[index]
    weights = {name: float(group.num_tokens) for name, group in _shards(recipe, index, prepared).items()}
    mixture = stage.mixture or MixtureSchedule(point=(MixturePoint(weights=weights),))
    recall = (stage.data or recipe.data).recall_group
    if recall and recall not in weights:  # no document was chosen for it, which was said when the text was read
        mixture = mixture.without(recall)
    if is_before:
        mixture = mixture.model_copy(update={"transition": 0.0})
    before = _mixture(recipe, index - 1, prepared, is_before=True) if index and mixture.transition else None
    # A stage in minutes is timed before its length is known; which of its data that takes does not matter.
    return mixture.timed(
        stage.batch_schedule.tokens_before(stage.total_steps or 1), stage.batch_schedule.tokens_before, before
    )


def check_batches(recipe: Recipe, prepared: Prepared, plans: Path | None = None, first: int = 0) -> None:
    """Make sure that the data can supply every stage from ``first`` on, as far as its length is known.

    Raises:
        UserError: a stage asks for groups that there are not, or for more of one than its ``max_epochs`` allows; or
            there is nothing to learn from. The message names the stage. Or ``[evaluate] environment`` has no prompts.
    """
    if recipe.evaluate.environment is not None:
        held_out_prompts(recipe, prepared.tokenizer)
    for index, stage in enumerate(recipe.stage):
        shards, on_prompts = prepared.of(stage).shards, stage.objective in ON_PROMPTS
        if index < first or not (on_prompts or (shards and _begins_with_what_is_known(recipe, index, prepared))):
            continue
        try:
            if on_prompts:
                open_prompts(recipe, index, prepared.tokenizer)
                tell_critic(recipe, stage)
                continue
            if not any(group.num_tokens for group in shards.values()):
                raise UserError("there are no tokens to train on; give more documents.")
            batches = make_batches(recipe, index, prepared, plans)
            if isinstance(batches, MixedBatches) and stage.total_steps is not None:
                batches.plan(stage.batch_schedule.batches_before(stage.total_steps))
            if isinstance(batches, ChatBatches | MixedChats | PairBatches | SolutionBatches):
                say(f"stage '{stage.name}': {batches.fitting} into sequences of {stage.seq_len:,} tokens")
            batches.batch(0)
        except UserError as error:
            raise UserError(f"stage '{stage.name}': {error}") from None


def epoch_steps(recipe: Recipe, index: int, prepared: Prepared) -> int:
    """In how many steps stage ``index`` goes through its data or prompts as often as its ``epochs`` say.

    Of a mixture, an epoch is as many tokens as all of its sources have. Prompts that are asked in place of others
    (``rl.redraws``), or because no rollout of a round has ended (``rl.round_tokens``), come on top.
    """
    stage = recipe.stage[index]
    assert stage.epochs is not None, "a stage in epochs"
    if stage.rl is not None:
        prompts = len(open_prompts(recipe, index, prepared.tokenizer)[0])
        return math.ceil(stage.epochs * prompts / stage.rl.prompts_per_step) * stage.rl.steps_per_round
    batches, before = make_batches(recipe, index, prepared), stage.batch_schedule.batches_before

    def gone_through(steps: int) -> float:
        if isinstance(batches, MixedBatches):
            total = sum(group.num_tokens for group in _shards(recipe, index, prepared).values())
            return sum(part.tokens for part in batches.plan(before(steps))) / total
        assert isinstance(batches, PackedBatches | ChatBatches | PairBatches | SolutionBatches), (
            "every other kind of batches"
        )
        return batches.epochs_before(before(steps))

    most = 1
    while gone_through(most) < stage.epochs:
        most *= 2
    return max(1, bisect_left(range(most + 1), stage.epochs, key=gone_through))


def _begins_with_what_is_known(recipe: Recipe, index: int, prepared: Prepared) -> bool:
    """Whether a transition into stage ``index`` can be computed, or there is none; in a dry run, text was not read."""
    mixture, before = recipe.stage[index].mixture, recipe.stage[index - 1] if index else None
    if mixture is None or not mixture.transition or before is None:
        return True
    return before.mixture is not None or bool(prepared.of(before).shards)


def tell_doubts(recipe: Recipe) -> None:
    """Say what may be carried out and is seldom meant: no softmax layer, and a warm-up that takes all steps."""
    model = recipe.model
    if not count_model(model).key_values_per_token:
        say(
            f"the model has {model.num_hidden_layers} layers and no softmax layer over all tokens, as models of fewer "
            "than 8 layers have unless model.layer_types says otherwise; it cannot look up what it read long ago."
        )
    for stage in recipe.stage:
        if stage.objective in ON_PROMPTS and model.capacity_factor is not None:
            say(
                f"stage '{stage.name}': model.capacity_factor drops tokens of full experts in training and not in the "
                "engine, so that what is learned from is not what was drawn (drift in metrics.jsonl)."
            )
        if recipe.train.noise_scale_steps and stage.batch_schedule.fewest_micro_batches == 1:
            say(
                f"stage '{stage.name}': its steps have one micro-batch, of which the noise scale cannot be measured; "
                "lower micro_batch_tokens, or raise batch_tokens, for it to be."
            )
        steps = stage.total_steps
        if steps is not None and 0 < steps <= stage.warmup_steps:
            last = stage.lr_at(steps - 1, steps)
            say(
                f"stage '{stage.name}': its warm-up ({stage.warmup_steps} steps) takes all of its {steps} steps: the "
                f"learning rate ends at {last:.3g} (lr is {stage.lr:.3g}) and never decays. Lower warmup_steps, or "
                "give it more steps."
            )


def tell_plan(stage: TrainingStage, batches: PackedBatchIterator, steps: int) -> None:
    """Say what a stage will read in ``steps`` steps: their sizes, and of each source its tokens and how often."""
    batch, tokens = stage.batch_schedule, stage.batch_schedule.tokens_before(steps)
    sizes = [f"{change.batch_tokens:,} tokens from step {change.step + 1:,} on" for change, _ in batch.within(steps)]
    sizes[0] = sizes[0].partition(" from ")[0]
    if stage.batch == "critical":
        sizes.append("or fewer where the critical batch doubles them")
    say(f"stage {stage.name}: {steps:,} steps of {', '.join(sizes)}; {tokens:,} in all, {stage.seq_len:,} a sequence")
    if isinstance(batches, PackedBatches | ChatBatches | PairBatches | SolutionBatches):
        what = "documents" if isinstance(batches, PackedBatches) else batches.fitting.noun
        say(f"the {what} are used {batches.epochs_before(batch.batches_before(steps)):.2f} times")
    if isinstance(batches, MixedBatches):
        planned = batches.plan(batch.batches_before(steps))
        total = sum(part.tokens for part in planned)
        for part in planned:
            bound = f", longer than {part.longer_than:,}" if part.longer_than else ""
            bound += f", up to {part.up_to:,} tokens long" if part.up_to else " tokens" * bool(bound)
            say(
                f"{part.source}{bound}: {part.tokens:,} tokens ({part.tokens / total:.1%}), its "
                f"{part.documents:,} documents {part.epochs:.2f} times"
            )
