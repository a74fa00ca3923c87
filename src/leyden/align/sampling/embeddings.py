"""Embeddings of texts without another model: the mean of the last hidden states of a language model."""

from collections.abc import Sequence

import numpy as np
import torch

from leyden.core.log import progress
from leyden.model import HybridLM
from leyden.tokenizer import Tokenizer

_TOKENS_AT_ONCE = 8192


def mean_hidden(model: HybridLM, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """[N, D] float32, of each text the mean of its last hidden states (before the vocabulary), of length 1.

    A text longer than the model's positions is cut. The cosine of two random texts is far above 0, since hidden states
    have a common direction: a threshold belongs to a model, and is found by looking at ``similarity`` in a report.

    Args:
        model: any; texts are read as documents, several packed into a row, which see nothing of each other.
        tokenizer: its own.
        texts: an empty one gets the vector of its beginning.
    """
    limit = model.config.max_position_embeddings
    tokens = [(tokenizer.encode(text) or [0])[:limit] for text in texts]
    device = model.norm.weight.device
    found = []
    with torch.inference_mode(), progress("embeddings", len(texts), "texts") as bar:
        for group in _groups(tokens):
            ends = np.cumsum([0, *map(len, group)])
            row = torch.tensor([[token for one in group for token in one]], device=device)
            cu_seqlens = torch.tensor(ends, dtype=torch.int32)
            hidden = model.features(row, cu_seqlens=cu_seqlens).hidden[0].float()
            for begin, end in zip(ends[:-1], ends[1:], strict=True):
                mean = hidden[begin:end].mean(0)
                found.append((mean / mean.norm().clamp_min(1e-12)).cpu().numpy())
            bar.advance(len(group))
    return np.stack(found) if found else np.zeros((0, model.config.hidden_size), np.float32)


def _groups(tokens: list[list[int]]) -> list[list[list[int]]]:
    """Texts in their order, in rows of a bounded length."""
    groups: list[list[list[int]]] = []
    size = 0
    for one in tokens:
        if not groups or size + len(one) > _TOKENS_AT_ONCE:
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += len(one)
    return groups
