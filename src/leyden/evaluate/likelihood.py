"""Bits per byte: how well a model predicts documents, comparable across tokenizers and with general compressors.

A document is ``[bos] + text tokens + [eod]``; the bos is given, every text token and the eod is predicted. The summed
negative log-likelihood, in bits, is divided by the document's UTF-8 bytes.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.model import Cache, HybridLM, evaluation_mode
from leyden.tokenizer import Tokenizer

Part = TypeVar("Part")


@dataclass(frozen=True)
class BitsPerByte:
    """What :func:`bits_per_byte` found.

    Attributes:
        bits_per_byte: ``nats / ln 2 / num_bytes``.
        nats: summed negative log-likelihood of every predicted token.
        num_bytes: UTF-8 bytes of the text.
        num_tokens: predicted tokens: those of the text, and one eod a document.
        num_documents: how many documents were read.
        seconds: how long it took, without the tokenizing.
    """

    bits_per_byte: float
    nats: float
    num_bytes: int
    num_tokens: int
    num_documents: int
    seconds: float

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes a predicted token stands for, on average."""
        return self.num_bytes / self.num_tokens


@dataclass(frozen=True)
class Window:
    """A stretch that is read from a fresh state: ``inputs[i]`` is read, ``labels[i]`` predicted after it; both [T]."""

    inputs: np.ndarray
    labels: np.ndarray


def bits_per_byte(
    model: HybridLM,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    *,
    context_tokens: int | None = None,
    forward_tokens: int = 8192,
) -> BitsPerByte:
    """Measure ``model`` on ``documents``, on the device and in the dtype it has.

    Short documents are packed into one row with ``cu_seqlens``; a longer one is read through the model's cache in
    pieces, so that memory is bounded and the result is that of reading it whole. Which documents share a row changes
    nothing but the rounding.

    Args:
        model: any mode; it is evaluated in ``eval()`` and left as it was.
        tokenizer: the model's.
        documents: the texts.
        context_tokens: cut each document into consecutive windows that predict at most so many tokens, each read
            anew after a bos. None: a window is as long as the model has positions.
        forward_tokens: how many tokens one forward pass reads at most.

    Raises:
        UserError: no bytes at all, or ``context_tokens`` below 1.
    """
    positions = model.config.max_position_embeddings
    context_tokens = positions if context_tokens is None else min(context_tokens, positions)
    if context_tokens < 1:
        raise UserError(f"context_tokens must be at least 1 (given: {context_tokens}).")
    num_bytes = sum(len(text.encode()) for text in documents)
    if not num_bytes:
        raise UserError(f"bits per byte needs text; the {len(documents)} documents given hold no bytes.")
    windows = [w for ids in tokenizer.encode_batch(documents) for w in cut(tokenizer, ids, context_tokens)]
    started = time.perf_counter()
    nats = 0.0
    with progress("bits per byte", sum(len(window.labels) for window in windows), "tokens") as bar:
        for found in window_nats(model, windows, forward_tokens):
            nats += found.sum().item()
            bar.advance(len(found))
    return BitsPerByte(
        bits_per_byte=nats / math.log(2) / num_bytes,
        nats=nats,
        num_bytes=num_bytes,
        num_tokens=sum(len(window.labels) for window in windows),
        num_documents=len(documents),
        seconds=time.perf_counter() - started,
    )


def cut(tokenizer: Tokenizer, ids: np.ndarray, context_tokens: int) -> Iterator[Window]:
    """The windows of one document: each predicts at most ``context_tokens`` tokens, and is read after a bos."""
    targets = np.append(ids, tokenizer.eod_id).astype(np.int64)
    for start in range(0, len(targets), context_tokens):
        labels = targets[start : start + context_tokens]
        yield Window(np.insert(labels[:-1], 0, tokenizer.bos_id), labels)


def window_nats(model: HybridLM, windows: Iterable[Window], forward_tokens: int = 8192) -> Iterator[np.ndarray]:
    """The negative log-likelihood of every label of each window, [T] float64 in nats, in the windows' order.

    Short windows share a forward pass; a window of more than ``forward_tokens`` is read in pieces through a cache.

    Args:
        model: any mode; it is in ``eval()`` while the windows are read, and left as it was.
        windows: what is read.
        forward_tokens: how many tokens one forward pass reads at most.
    """
    with evaluation_mode(model.modules()):
        for row in in_rows(windows, lambda window: len(window.labels), forward_tokens):
            with torch.inference_mode():
                long = len(row) == 1 and len(row[0].labels) > forward_tokens
                nats = _in_pieces(model, row[0], forward_tokens) if long else _packed(model, row)
            yield from np.split(nats, np.cumsum([len(window.labels) for window in row])[:-1])


def in_rows(items: Iterable[Part], size: Callable[[Part], int], at_most: int) -> Iterator[list[Part]]:
    """Items, in order, in rows whose sizes sum to at most ``at_most``; a larger one stands alone."""
    row: list[Part] = []
    filled = 0
    for item in items:
        if row and filled + size(item) > at_most:
            yield row
            row, filled = [], 0
        row.append(item)
        filled += size(item)
    if row:
        yield row


def _packed(model: HybridLM, row: list[Window]) -> np.ndarray:
    """The nats of several windows end to end, by one forward pass."""
    device = model.lm_head.weight.device
    bounds = torch.tensor([0, *(len(window.labels) for window in row)]).cumsum(0)
    tokens = torch.from_numpy(np.concatenate([window.inputs for window in row])).to(device)
    labels = torch.from_numpy(np.concatenate([window.labels for window in row])).to(device)
    hidden = model.features(tokens[None], cu_seqlens=bounds.int()).hidden
    return _nats(model, hidden, labels)


def _in_pieces(model: HybridLM, window: Window, forward_tokens: int) -> np.ndarray:
    """The nats of one window, read through a cache."""
    device = model.lm_head.weight.device
    cache = Cache(model.config)
    nats = []
    for start in range(0, len(window.inputs), forward_tokens):
        piece = slice(start, start + forward_tokens)
        tokens, labels = (torch.from_numpy(x[piece]).to(device) for x in (window.inputs, window.labels))
        nats.append(_nats(model, model.features(tokens[None], cache=cache).hidden, labels))
    return np.concatenate(nats)


def _nats(model: HybridLM, hidden: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """[T] float64 of hidden [1, T, D] and labels [T]."""
    return model.token_nll(hidden, labels[None])[0].double().cpu().numpy().reshape(-1)
