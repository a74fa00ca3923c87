"""The log-likelihood that a model gives each choice of an item after its context."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from leyden.core.errors import UserError
from leyden.evaluate.likelihood import in_rows
from leyden.model import HybridLM, evaluation_mode
from leyden.study.items import Item
from leyden.study.metric import Reading, log_acc_norm2
from leyden.tokenizer import Tokenizer

_ROW_TOKENS = 8192


@dataclass(frozen=True)
class _Choice:
    """One choice after its context: ``inputs`` are read, the last ``len(targets)`` positions predict ``targets``."""

    inputs: np.ndarray
    targets: np.ndarray


def choice_log_likelihoods(
    model: HybridLM, tokenizer: Tokenizer, items: Sequence[Item], tell: Callable[[int], None] = lambda items: None
) -> list[list[float]]:
    """Nats of every choice of every item: its tokens after ``[bos]`` and the context's tokens.

    Context and choice are tokenised apart, so that the same tokens of context stand before every choice.

    Args:
        model: any mode; evaluated in ``eval()`` and left as it was.
        tokenizer: the model's.
        items: what is asked.
        tell: called with the number of items done, now and then.

    Raises:
        UserError: context and choice are longer than the model has positions.
    """
    choices = [choice for item in items for choice in _choices(tokenizer, item)]
    longest = max(len(choice.inputs) for choice in choices)
    if longest > model.config.max_position_embeddings:
        raise UserError(
            f"an item has {longest} tokens, the model {model.config.max_position_embeddings} positions; shorten the "
            "contexts of the items."
        )
    found = []
    with evaluation_mode(model.modules()), torch.inference_mode():
        for row in in_rows(choices, lambda choice: len(choice.inputs), _ROW_TOKENS):
            found += _packed(model, row).tolist()
            tell(len(row))
    sizes = np.cumsum([0, *(len(item.choices) for item in items)])
    return [found[start:end] for start, end in zip(sizes, sizes[1:], strict=False)]


def item_scores(items: Sequence[Item], log_likelihoods: Sequence[Sequence[float]], reading: Reading) -> np.ndarray:
    """[I] log acc_norm^2 of each item.

    Raises:
        UserError: the log-likelihoods are of other items.
    """
    if [len(item.choices) for item in items] != [len(row) for row in log_likelihoods]:
        raise UserError("the scores of a run do not fit the items: other items were scored. Run the experiment again.")
    most = max(len(item.choices) for item in items)
    nats, sizes = np.full((len(items), most), np.nan), np.ones((len(items), most))
    for row, (item, values) in enumerate(zip(items, log_likelihoods, strict=True)):
        nats[row, : len(values)] = values
        sizes[row, : len(values)] = [len(choice.encode()) for choice in item.choices]
    return log_acc_norm2(nats, sizes, np.array([item.answer for item in items]), reading)


def _choices(tokenizer: Tokenizer, item: Item) -> Iterator[_Choice]:
    context = [tokenizer.bos_id, *tokenizer.encode(item.context)]
    for text in item.choices:
        targets = tokenizer.encode(text)
        yield _Choice(np.array([*context, *targets[:-1]]), np.array(targets))


def _packed(model: HybridLM, row: Sequence[_Choice]) -> torch.Tensor:
    """[N] float64, the nats of N choices, by one forward pass."""
    device = model.norm.weight.device
    ends = np.cumsum([len(choice.inputs) for choice in row])
    places = np.concatenate([np.arange(end - len(c.targets), end) for c, end in zip(row, ends, strict=True)])
    owners = np.repeat(np.arange(len(row)), [len(choice.targets) for choice in row])
    tokens, targets = (
        torch.from_numpy(np.concatenate(parts)).to(device)
        for parts in ([choice.inputs for choice in row], [choice.targets for choice in row])
    )
    bounds = torch.tensor([0, *ends.tolist()], dtype=torch.int32)
    hidden = model.features(tokens[None], cu_seqlens=bounds).hidden[0, torch.from_numpy(places).to(device)]
    nll, _ = model.token_nll(hidden[None], targets[None])
    return torch.zeros(len(row), dtype=torch.float64).index_add_(0, torch.from_numpy(owners), -nll[0].double().cpu())
