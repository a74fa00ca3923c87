"""The batches of a recipe's stages, and what is checked of all of them before the first step of any."""

from pathlib import Path

from leyden.core.errors import UserError
from leyden.core.log import say
from leyden.data import PackedBatches
from leyden.data.loader.mixed import MixedBatches
from leyden.data.loader.mixture_schedule import MixturePoint, MixtureSchedule
from leyden.data.loader.packing import PackedBatchIterator
from leyden.model import count_model
from leyden.recipes.prepare import Prepared
from leyden.recipes.schema import Recipe


def make_batches(recipe: Recipe, index: int, prepared: Prepared, plans: Path | None = None) -> PackedBatchIterator:
    """The batches of stage ``index``, from their beginning.

    Args:
        recipe: whose stage it is.
        index: of the stage.
        prepared: the tokens.
        plans: a directory that keeps best-fit plans; None: in memory.

    Raises:
        UserError: the tokens cannot give such batches.
    """
    stage = recipe.stage[index]
    shards, seed = prepared.shards, recipe.train.seed + index
    if stage.mixture is None and len(shards) == 1:
        return PackedBatches(
            *shards.values(),
            seq_len=stage.seq_len,
            batch_tokens=stage.micro_batch,
            seed=seed,
            packing=stage.packing,
            plans=plans,
        )
    as_they_are = MixturePoint(weights={name: float(group.num_tokens) for name, group in shards.items()})
    return MixedBatches(
        shards,
        stage.mixture or MixtureSchedule(point=(as_they_are,)),
        seq_len=stage.seq_len,
        batch_tokens=stage.micro_batch,
        seed=seed,
        batches_per_step=stage.batch_tokens // stage.micro_batch,
        plans=plans,
    )


def check_batches(recipe: Recipe, prepared: Prepared, plans: Path | None = None, first: int = 0) -> None:
    """Make sure that the data can supply every stage from ``first`` on, as far as its length is known.

    Raises:
        UserError: a stage asks for groups that there are not, or for more of one than its ``max_epochs`` allows; or
            there is nothing to learn from. The message names the stage.
    """
    for index, stage in enumerate(recipe.stage):
        if index < first:
            continue
        try:
            if not any(shards.num_tokens for shards in prepared.shards.values()):
                raise UserError("there are no tokens to train on; give more documents.")
            batches = make_batches(recipe, index, prepared, plans)
            if isinstance(batches, MixedBatches) and stage.total_steps is not None:
                batches.plan(stage.total_steps)
            batches.batch(0)
        except UserError as error:
            raise UserError(f"stage '{stage.name}': {error}") from None


def tell_doubts(recipe: Recipe) -> None:
    """Say what may be carried out and is seldom meant: no softmax layer, and a warm-up that takes all steps."""
    model = recipe.model
    if not count_model(model).key_values_per_token:
        say(
            f"the model has {model.num_hidden_layers} layers and no softmax layer over all tokens, as models of fewer "
            "than 8 layers have unless model.layer_types says otherwise; it cannot look up what it read long ago."
        )
    for stage in recipe.stage:
        if recipe.train.noise_scale_steps and stage.batch_tokens == stage.micro_batch:
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


def tell_mixture(batches: PackedBatchIterator, steps: int) -> None:
    """Say what each source will give in ``steps`` steps."""
    if isinstance(batches, MixedBatches):
        for part in batches.plan(steps):
            bound = f", up to {part.up_to:,} tokens long" if part.up_to else ""
            say(f"{part.source}{bound}: {part.tokens:,} tokens, its documents {part.epochs:.2f} times")
