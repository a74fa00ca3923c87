"""A hash of a model's weights that is the same however ranks divide them."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from leyden.checkpoint.coordinator import Coordinator
from leyden.checkpoint.pieces import TensorPiece
from leyden.core.splitmix import mix

_AT_ONCE = 1 << 20
"""Weights whose hashes are computed together."""

_Rectangle = tuple[str, tuple[int, ...], tuple[int, ...]]
"""The name of a tensor; where a rectangle of it begins, and its sizes."""


def weights_hash(pieces: Mapping[str, TensorPiece], coordinator: Coordinator) -> str:
    """A hash of some tensors, of which each rank holds a part; all ranks call this.

    Every element is hashed with its place in its tensor, and the hashes of a tensor are added up modulo 2^64, so that
    neither the division over ranks nor the order matters. This finds what changed by accident; against whoever looks
    for another model with the same hash it is not made.

    Args:
        pieces: by name, in float32 or float64; together the ranks hold each tensor whole.
        coordinator: of the ranks.

    Returns:
        32 hexadecimal digits, the same on every rank.
    """
    found = coordinator.on_all_ranks(lambda: dict(_rectangles(pieces)))
    each = {rectangle: value for of_rank in found for rectangle, value in of_rank.items()}  # held twice, counted once
    sums, sizes = Counter[str](), Counter[str]()
    for (name, _, shape), value in each.items():
        sums[name] += value
        sizes[name] += int(np.prod(shape, dtype=np.int64))
    for name, piece in pieces.items():
        if sizes[name] != int(np.prod(piece.part.shape, dtype=np.int64)):
            raise RuntimeError(f"the ranks hold {sizes[name]} elements of {name}, whose shape is {piece.part.shape}")
    text = "\n".join(f"{name} {sizes[name]} {sums[name] % 2**64}" for name in sorted(sums))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _rectangles(pieces: Mapping[str, TensorPiece]) -> Iterator[tuple[_Rectangle, int]]:
    for name, piece in pieces.items():
        for start, tensor in piece.chunks().items():
            yield (name, start, tuple(tensor.shape)), _sum_of_hashes(tensor, start, piece.part.shape)


def _sum_of_hashes(tensor: torch.Tensor, start: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Modulo 2^64, of a rectangle that begins at ``start`` of a tensor of ``shape``, which has one dim at least."""
    strides = np.cumprod([1, *reversed(shape[1:])], dtype=np.uint64)[::-1]
    ranges = [np.arange(first, first + size, dtype=np.uint64) for first, size in zip(start, tensor.shape, strict=True)]
    rows, *others = [along * stride for along, stride in zip(ranges, strides, strict=True)]
    columns = np.zeros(1, np.uint64)
    for along in others:
        columns = np.add.outer(columns, along).ravel()
    at_once = max(1, _AT_ONCE // len(columns))
    total = 0
    for first in range(0, len(rows), at_once):
        places = np.add.outer(rows[first : first + at_once], columns)
        values = tensor[first : first + at_once].detach().cpu().contiguous().numpy()
        bits = values.view(f"u{values.itemsize}").astype(np.uint64).reshape(places.shape)
        total += int(mix(mix(places) + bits).sum(dtype=np.uint64))
    return total % 2**64
