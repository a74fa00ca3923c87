"""The weights of a model on disk with those of an adapter added to them, each when it is asked for."""

from pathlib import Path

import torch

from leyden.checkpoint.adapter import StoredAdapter, base_of, is_adapter_directory
from leyden.checkpoint.fingerprint import fingerprint_of
from leyden.checkpoint.hub import find_model
from leyden.checkpoint.stored_weights import StoredWeights
from leyden.core.errors import UserError
from leyden.ops import quantize_rows
from leyden.parallel.part import Part


class MergedWeights(StoredWeights):
    """``W + scale B A``, added in float64 and rounded once to the dtype of W; what is not adapted is as it is stored.

    Args:
        weights: of the model.
        adapter: that fits it.
    """

    def __init__(self, weights: StoredWeights, adapter: StoredAdapter, *, mapped: bool = True) -> None:
        super().__init__(weights.files, list(weights.bindings.values()), weights.float32, mapped=mapped)
        self._plain, self._adapter = weights, adapter

    def __getitem__(self, name: str) -> torch.Tensor:
        plain = super().__getitem__(name)
        return self._adapter.add_to(name, plain) if self._adapter.adapts(name) else plain

    def part(self, name: str, part: Part) -> torch.Tensor:
        """See :meth:`StoredWeights.part`; of an adapted weight, the whole is made first."""
        return part.cut(self[name]) if self._adapter.adapts(name) else super().part(name, part)

    def in_8_bits(self, name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`StoredWeights.in_8_bits`; of an adapted weight, the sum is rounded."""
        if not self._adapter.adapts(name):
            return super().in_8_bits(name, device)
        return quantize_rows(self[name].to(device))

    def in_memory(self) -> "MergedWeights":
        return MergedWeights(self._plain, self._adapter, mapped=False)

    def is_mapped(self, name: str, dtype: torch.dtype) -> bool:
        return not self._adapter.adapts(name) and super().is_mapped(name, dtype)


def base_directory(adapter: Path) -> Path:
    """The directory of the model that the adapter in ``adapter`` was trained on.

    Raises:
        UserError: it is not there, or is an adapter itself.
    """
    name = base_of(adapter)
    try:
        base = find_model(name)
    except UserError as error:
        raise UserError(
            f"{adapter} is an adapter of {name}, which is not to be found: {error} To merge it into that model "
            f"elsewhere: leyden convert MODEL DIR --layout leyden --lora {adapter}"
        ) from None
    if is_adapter_directory(base):
        raise UserError(
            f"{adapter} is an adapter of {base}, which is one itself; merge that first: leyden convert {base} DIR "
            "--layout leyden"
        )
    return base


def check_base(adapter: StoredAdapter, weights: StoredWeights) -> None:
    """Refuse an adapter of other weights, where its file says which ones it was trained on.

    Raises:
        UserError: they are others, or have another adapter added to them.
    """
    if isinstance(weights, MergedWeights):
        raise UserError(
            f"the adapter {adapter.directory} would be added to a model that is an adapter itself; merge that first: "
            "leyden convert MODEL DIR --layout leyden"
        )
    if adapter.fingerprint is not None and fingerprint_of(weights) != adapter.fingerprint:
        raise UserError(
            f"the adapter {adapter.directory} was trained on the weights of {adapter.base}, and "
            f"{weights.files.directory} has others, or the same in another layout or with another tokenizer. Take that "
            "model as it was; merged once (leyden convert MODEL DIR --lora ADAPTER), it can be converted to any layout."
        )
