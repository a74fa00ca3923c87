"""The model that a run begins from: any MODEL on disk, of which each rank reads its own part."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from leyden.checkpoint.adapter import CONFIG_FILE, WEIGHTS_FILE, is_adapter_directory
from leyden.checkpoint.coordinator import coordinator_of
from leyden.checkpoint.fingerprint import fingerprint_of
from leyden.checkpoint.hub import find_model
from leyden.checkpoint.model_directory import open_stored
from leyden.checkpoint.origin import recipe_of
from leyden.checkpoint.pieces import TensorPiece, load_pieces
from leyden.checkpoint.stored_model import StoredModel
from leyden.checkpoint.training import check_whole, is_checkpoint
from leyden.core.checksums import file_hashes
from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.model.quantized import scale_of
from leyden.parallel import Mesh, Part
from leyden.tokenizer import Tokenizer

NewRows = Literal["mean", "normal"]
"""What rows begin as that the model has not had: each the mean of its rows, or as the run's initial weights are."""

GROWING = ("embed_tokens.weight", "lm_head.weight")
"""The weights with a row for each token, which may have more rows in the run than in the model."""

ADDED = ("score.weight", "mtp.")
"""How the names of weights begin that the run may have and the model not; they begin as the run's initial weights are:
a score head, and modules for multi-token prediction."""

_MASTER = "master."
_MOST_THREADS = 4


@dataclass(frozen=True)
class StartingModel:
    """A model on disk; headers are read when something is asked of it, and weights by :meth:`fill` alone.

    Attributes:
        name: what the user called it: a directory, a run, a checkpoint of one, or a hub id.
        directory: of its files.
        known: its fingerprint, where that was computed before.
        new_rows: what rows begin as that a larger vocabulary needs.
    """

    name: str
    directory: Path
    known: str | None = None
    new_rows: NewRows = "mean"

    @classmethod
    def find(cls, name: str) -> "StartingModel":
        """The model that ``name`` means now; of a run, ``final/`` or its newest checkpoint.

        Raises:
            UserError: there is none.
        """
        return cls(name, find_model(name, verify=False).absolute())

    @cached_property
    def _stored(self) -> StoredModel:
        return open_stored(self.directory, verify=False)

    @property
    def layout(self) -> str:
        """The name of the layout that it is in; of a checkpoint, ours."""
        return self._stored.layout

    @property
    def config(self) -> ModelConfig:
        """Its shape.

        Raises:
            UserError: the directory does not hold the model that it describes, or another kind of model.
        """
        return self._stored.config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer; None where it has none."""
        return self._stored.tokenizer

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all weights, by our names."""
        return {name: binding.shape for name, binding in self._stored.weights.bindings.items()}

    @cached_property
    def dtype(self) -> torch.dtype:
        """What it was trained in, where it lies in a run, which stores its weights wider; else as it is stored."""
        trained_in = recipe_of(self.directory).get("train", {}).get("dtype")
        known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        return known.get(trained_in, self._stored.weights.dtype)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of weights, shape and tokenizer. It is read from the lists of hashes that Leyden writes beside them;
        files that have none are read through."""
        if self.known is not None:
            return self.known
        if is_adapter_directory(self.directory):
            own = file_hashes(self.directory, [CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json"])
            found = [fingerprint_of(self._stored.weights), *own]
            return hashlib.sha256("\n".join(map(str, found)).encode()).hexdigest()
        return fingerprint_of(self._stored.weights)

    def record(self) -> dict[str, Any]:
        """What a run notes of it, as JSON values."""
        return {"model": self.name, "directory": str(self.directory), "fingerprint": self.fingerprint}

    def fill(self, pieces: Mapping[str, TensorPiece], mesh: Mesh | None = None) -> None:
        """Write this rank's part of every weight into ``pieces``, rounded to their dtypes.

        All ranks of ``mesh`` call this; together they compare the files with their hashes, and each reads of a weight
        what it holds of it. What exists twice at any moment is a part of a few weights. Rows that the model has not are
        written last; for their mean the first rank reads all rows through, some MB at a time.

        Args:
            pieces: by our names. Integers of 8 bits come with their scales
                (:func:`leyden.model.quantized.scale_of`), and both are rounded as the file is read.
            mesh: of the ranks; None: one process.

        Raises:
            UserError: on all ranks: a piece is of no weight of this model or of another shape, or the files are
                damaged.
        """
        coordinator = coordinator_of(mesh)
        in_8_bits = {name: piece for name, piece in pieces.items() if piece.tensor.dtype == torch.int8}
        scales = {scale_of(name): pieces[scale_of(name)] for name in in_8_bits}
        if in_8_bits:
            coordinator.on_all_ranks(lambda: self._read_in_8_bits(in_8_bits, scales))
            pieces = {name: piece for name, piece in pieces.items() if name not in in_8_bits and name not in scales}
        grown = sorted({name for names in coordinator.on_all_ranks(lambda: self._check(pieces)) for name in names})
        shapes = self.shapes
        known = {name: _known_rows(piece, shapes[name]) for name, piece in pieces.items() if name in shapes}
        if is_checkpoint(self.directory):
            check_whole(self.directory, coordinator)
            coordinator.on_all_ranks(
                lambda: load_pieces(self.directory, {_MASTER + name: piece for name, piece in known.items()})
            )
        else:
            coordinator.on_all_ranks(lambda: self._read(known, mesh))
        if grown and self.new_rows == "mean":
            means = coordinator.on_rank_0(lambda: {name: self._mean_row(name) for name in grown})
            for name in pieces.keys() & means.keys():
                part, rows = pieces[name].part, len(known[name].tensor)
                pieces[name].tensor[rows:] = Part(part.shape[1:], part.spans[1:]).cut(means[name])

    def _mean_row(self, name: str) -> torch.Tensor:
        """[columns] float64, over all rows of a weight."""
        weights = open_stored(self.directory, verify=False).weights
        (stored,) = weights.bindings[name].theirs
        total, count = torch.zeros(weights.bindings[name].shape[1], dtype=torch.float64), 0
        for rows in weights.files.read_rows(stored):
            total += rows.double().sum(0)
            count += len(rows)
        return total / count

    def _check(self, pieces: Mapping[str, TensorPiece]) -> list[str]:
        """The names of ``pieces`` that have more rows than the model."""
        shapes = self.shapes
        grown = [
            name
            for name, piece in pieces.items()
            if name in GROWING and name in shapes and _is_grown(piece.part.shape, shapes[name])
        ]
        wrong = [
            f"{name} is {list(piece.part.shape)} here and {list(shapes[name]) if name in shapes else 'missing'} there"
            for name, piece in pieces.items()
            if name not in grown
            and piece.part.shape != shapes.get(name)
            and not (name.startswith(ADDED) and name not in shapes)
        ]
        if wrong:
            more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise UserError(
                f"the weights of {self.name} do not fit this model: {'; '.join(wrong[:4])}{more}. Give the model the "
                "shape of the one that it begins from (its config.json), or begin with initial weights."
            )
        return grown

    def _read_in_8_bits(self, pieces: Mapping[str, TensorPiece], scales: Mapping[str, TensorPiece]) -> None:
        weights = open_stored(self.directory, verify=False).weights
        for name, (tensor, part) in ((name, (piece.tensor, piece.part)) for name, piece in pieces.items()):
            if part.shape != weights.bindings[name].shape:
                raise UserError(f"{name} is {list(part.shape)} here and {list(weights.bindings[name].shape)} there.")
            whole, scale = weights.in_8_bits(name, tensor.device)
            tensor.copy_(part.cut(whole))
            scales[scale_of(name)].tensor.copy_(scales[scale_of(name)].part.cut(scale))

    def _read(self, pieces: Mapping[str, TensorPiece], mesh: Mesh | None) -> None:
        weights = open_stored(self.directory, mesh).weights

        def read(name: str) -> None:
            pieces[name].tensor.copy_(weights.part(name, pieces[name].part))

        with ThreadPoolExecutor(_MOST_THREADS) as pool:
            for _ in pool.map(read, pieces):
                pass


def _is_grown(here: tuple[int, ...], there: tuple[int, ...]) -> bool:
    return len(here) == len(there) == 2 and here[0] > there[0] and here[1] == there[1]


def _known_rows(piece: TensorPiece, shape: tuple[int, ...]) -> TensorPiece:
    """Of ``piece`` what a weight of ``shape``, perhaps of fewer rows, has: the first rows of its tensor."""
    if piece.part.shape == shape:
        return piece
    rows, *others = piece.part.spans
    kept = tuple((start, min(stop, shape[0])) for start, stop in rows if start < shape[0])
    part = Part(shape, (kept, *others))
    return TensorPiece(piece.tensor[: part.local_shape[0]], part)
