"""One training run of a study, from a seed to the log-likelihoods of the items: seconds for a small model."""

from collections.abc import Callable, Sequence
from pathlib import Path

from leyden.core.device import default_device, keep_freed_memory
from leyden.core.errors import UserError
from leyden.data import PackedBatches, TokenShards
from leyden.data.loader.prefetch import Prefetched
from leyden.model import HybridLM
from leyden.study.experiment import TrainSettings
from leyden.study.items import Item
from leyden.study.likelihood import choice_log_likelihoods
from leyden.tokenizer import Tokenizer
from leyden.train import (
    LearningRate,
    Pretrain,
    RunSettings,
    StageRun,
    StepResult,
    TrainState,
    build_state,
    train_stages,
)

_EVALUATION_SHARE = 0.2  # of a run's time, for its progress bar


def train_model(
    settings: TrainSettings,
    shards: TokenShards,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    seed: int,
    run_dir: Path,
    tell: Callable[[float], None],
) -> list[list[float]]:
    """Train a model, or go on with a training that was stopped, and score the items.

    Args:
        settings: the model and its schedule.
        shards: the variant's tokens.
        tokenizer: that made them.
        items: what is asked.
        seed: of the initialisation and of the order of the documents.
        run_dir: gets the metrics of every step and the checkpoints.
        tell: called with shares of the run that are done, 1 in all.

    Raises:
        Interrupted: Ctrl-C; a checkpoint was written, from which the same call goes on.
        UserError: the loss is not finite.
    """
    keep_freed_memory()
    run, done = RunSettings(dtype="float32", seed=seed, keep_checkpoints=1), 0.0

    def note(state: TrainState, result: StepResult) -> None:
        nonlocal done
        if result.skipped:
            raise UserError(f"seed {seed}: the loss is not finite at step {state.step}; lower train.lr.")
        before, done = done, (1 - _EVALUATION_SHARE) * state.step / settings.steps
        tell(done - before)

    stage = StageRun(
        name=f"seed {seed}",
        objective=Pretrain(),
        learning_rate=LearningRate(
            lr=settings.lr, schedule="linear", decay_share=0.5, warmup_steps=min(10, settings.steps // 2)
        ),
        steps=settings.steps,
        seq_len=settings.seq_len,
        batches=lambda: Prefetched(
            PackedBatches(shards, seq_len=settings.seq_len, batch_tokens=settings.batch_tokens, seed=seed)
        ),
        callbacks=[note],
        shows_progress=False,
    )
    state = build_state(settings.model_config_of(tokenizer.vocab_size), run, row_tokens=settings.seq_len)
    train_stages(state, [stage], run, run_dir, how_to_resume="The same command goes on from there.")
    assert isinstance(state.model, HybridLM), "one process has all layers"
    found = choice_log_likelihoods(state.model, tokenizer, items)
    tell(1 - done)
    return found


def evaluate_models(path: str, items: Sequence[Item]) -> list[list[float]]:
    """Score the items by a model that was trained elsewhere.

    Raises:
        UserError: there is no model at ``path``, or it has no tokenizer.
    """
    from leyden.checkpoint import load

    model, tokenizer = load(path, device=default_device())
    if tokenizer is None:
        raise UserError(f"{path} has no tokenizer, and items are text; put its tokenizer.json beside the weights.")
    return choice_log_likelihoods(model, tokenizer, items)
