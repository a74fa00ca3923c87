"""Rows as text, for a checkpoint: every array with its dtype and shape, compressed."""

import base64
import io
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from leyden.data import Batch

_PER_TOKEN, _PER_DOCUMENT = "per_token.", "per_document."


def packed_text(parts: Sequence[Sequence[Batch]]) -> str:
    """The rows of several steps as ASCII; :func:`unpacked` gives the same bits."""
    arrays: dict[str, np.ndarray] = {}
    for number, part in enumerate(parts):
        for place, row in enumerate(part):
            arrays |= {f"{number}/{place}/{name}": tensor.numpy() for name, tensor in _tensors(row).items()}
    file = io.BytesIO()
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return base64.b64encode(zlib.compress(file.getvalue(), level=1)).decode("ascii")


def unpacked(text: str) -> list[list[Batch]]:
    """The rows of :func:`packed_text`."""
    with np.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), allow_pickle=False) as file:
        parts: list[list[dict[str, torch.Tensor]]] = []
        for key in file.files:
            number, place, name = key.split("/", 2)
            if int(number) == len(parts):
                parts.append([])
            if int(place) == len(parts[-1]):
                parts[-1].append({})
            parts[-1][-1][name] = torch.from_numpy(file[key])
    return [[_batch(tensors) for tensors in part] for part in parts]


def _tensors(row: Batch) -> Mapping[str, torch.Tensor]:
    assert row.groups is not None, "completions are in groups of one"
    return {
        "tokens": row.tokens,
        "labels": row.labels,
        "cu_seqlens": row.cu_seqlens,
        "groups": row.groups,
        **{_PER_TOKEN + name: tensor for name, tensor in row.per_token.items()},
        **{_PER_DOCUMENT + name: tensor for name, tensor in row.per_document.items()},
    }


def _batch(tensors: Mapping[str, torch.Tensor]) -> Batch:
    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}

    return Batch(
        tokens=tensors["tokens"],
        labels=tensors["labels"],
        cu_seqlens=tensors["cu_seqlens"],
        per_token=under(_PER_TOKEN),
        per_document=under(_PER_DOCUMENT),
        groups=tensors["groups"],
    )
