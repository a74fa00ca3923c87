"""One training run of a study, from a seed to the log-likelihoods of the items: seconds for a small model."""

from collections.abc import Callable, Sequence

import torch

from leyden.core.device import default_device, keep_freed_memory
from leyden.core.errors import UserError
from leyden.data import PackedBatches, TokenShards
from leyden.model import HybridLM
from leyden.study.experiment import TrainSettings
from leyden.study.items import Item
from leyden.study.likelihood import choice_log_likelihoods
from leyden.tokenizer import Tokenizer
from leyden.train import MasterAdamW, Pretrain, Schedule, TrainState, train_step

_EVALUATION_SHARE = 0.2  # of a run's time, for its progress bar
_CLIP_NORM = 1.0


def train_model(
    settings: TrainSettings,
    shards: TokenShards,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    seed: int,
    tell: Callable[[float], None],
) -> list[list[float]]:
    """Train a model and score the items.

    Args:
        settings: the model and its schedule.
        shards: the variant's tokens.
        tokenizer: that made them.
        items: what is asked.
        seed: of the initialisation and of the order of the documents.
        tell: called with shares of the run that are done, 1 in all.

    Raises:
        UserError: the loss is not finite.
    """
    keep_freed_memory()
    torch.manual_seed(seed)
    model = HybridLM(settings.model_config_of(tokenizer.vocab_size), seed=seed).to(default_device())
    state = TrainState(model, MasterAdamW(model))
    batches = PackedBatches(shards, seq_len=settings.seq_len, batch_tokens=settings.batch_tokens, seed=seed)
    schedule = Schedule(lr=settings.lr, kind="linear", decay_share=0.5, warmup_steps=min(10, settings.steps // 2))
    for step in range(settings.steps):
        lr = schedule.lr_at(step, settings.steps)
        result = train_step(state, [next(batches)], Pretrain(), lr=lr, clip_norm=_CLIP_NORM)
        if result.skipped:
            raise UserError(f"seed {seed}: the loss is not finite at step {step + 1}; lower train.lr.")
        tell((1 - _EVALUATION_SHARE) / settings.steps)
    found = choice_log_likelihoods(model, tokenizer, items)
    tell(_EVALUATION_SHARE)
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
