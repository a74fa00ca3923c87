"""Log-probabilities of texts with the bits that an engine reports, with a gradient where one is asked for.

Policy gradients compare the probability of a sampled token under the weights that are trained with that under the
weights that sampled it. On equal weights the ratio of the two must be 1, but rounding spoils it wherever trainer and
engine compute the same formula in another order: in bfloat16 by several percent a token. Three things differ between a
forward pass of training and the prefill of an engine, and are made equal here: experts drop no tokens, rows are padded
to a multiple of :data:`leyden.model.rows.GRAIN`, and lightning attention takes the body that it takes where nothing is
to be learned. Its gradient is that of the same formula by the body that has one.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from leyden.core.errors import UserError
from leyden.model.lm import HybridLM
from leyden.model.mixers import Mixer
from leyden.model.ranks import Ranks
from leyden.model.rows import GRAIN

_ROWS_AT_ONCE = 64 * GRAIN
"""Of a text, the positions whose logits exist at once; in a backward they are computed again."""


def text_logprobs(model: HybridLM, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The log-probability of each token of each text but the first, given those before it.

    On a CPU they have the bits of what an engine with these weights reports of the same tokens as a prompt
    (:meth:`leyden.serve.Engine.text_logprobs`): in float32 and bfloat16, and with gradients as without. (Except where
    ``max_position_embeddings`` is no multiple of :data:`leyden.model.rows.GRAIN` and a text ends behind the last such
    multiple: there is no room for its padding.)

    Args:
        model: in any mode; it computes in evaluation mode, and has its own mode again afterwards. One process has all
            of it.
        texts: each of at least one token id.

    Returns:
        One tensor [tokens - 1] a text, in nats, float32 or wider; differentiable where gradients are enabled.

    Raises:
        UserError: several ranks have a part of the model each, a text is empty, or longer than the model's positions.
    """
    if type(model.ranks) is not Ranks:
        raise UserError(
            "text_logprobs computes on one process, and several ranks have a part of this model each; the losses of "
            "an objective (model.token_nll) are computed by all of them."
        )
    if not all(texts):
        raise UserError("a text that is scored has at least one token; one of these has none.")
    with evaluation_mode(model.modules()), _bodies_of_inference(model):
        return [_of_text(model, torch.tensor(text, device=model.norm.weight.device)) for text in texts]


@contextlib.contextmanager
def evaluation_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode, in which no expert drops a token; every module then gets back the mode that it had."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _bodies_of_inference(model: HybridLM) -> Iterator[None]:
    """Every mixer by the body that it takes without gradients."""
    mixers = [module for module in model.modules() if isinstance(module, Mixer)]
    before = [getattr(mixer, mixer.seam) for mixer in mixers]
    for mixer in mixers:
        setattr(mixer, mixer.seam, mixer.scored or mixer.alone)
    try:
        yield
    finally:
        for mixer, body in zip(mixers, before, strict=True):
            setattr(mixer, mixer.seam, body)


def _of_text(model: HybridLM, text: torch.Tensor) -> torch.Tensor:
    """[T] int64 to [T - 1]."""
    length = min(-(-len(text) // GRAIN) * GRAIN, max(len(text), model.config.max_position_embeddings))
    padded = nn.functional.pad(text, (0, length - len(text)))
    hidden = model.features(padded[None]).hidden[0]
    found = [
        checkpoint(_of_rows, model, rows, following, use_reentrant=False)
        for rows, following in zip(hidden.split(_ROWS_AT_ONCE), padded.roll(-1).split(_ROWS_AT_ONCE), strict=True)
    ]
    return torch.cat(found)[: len(text) - 1]


def _of_rows(model: HybridLM, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The log-probability of each of ``tokens`` [R] behind ``hidden`` [R, D]: as an engine measures it."""
    return model.logits(hidden).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
