"""Memory for many sequences at once, as a server keeps it: what each layer's mixer asks for, in slots and in pages.

A sequence has one slot, for what does not grow with it, and as many pages as its tokens fill. Which slot and which
pages is for the caller to say, in :class:`Rows`; a slot or page that no row names is neither read nor written.
"""

from collections import Counter
from collections.abc import Mapping

import torch

from leyden.model.config import ModelConfig
from leyden.model.mixers import Memory, Mixer, PoolTensor, mixer_of
from leyden.model.rows import PAGE, Rows


class Pools:
    """Slots and pages of all layers.

    Args:
        config: the shape; of a rank's part of a model, with its heads.
        num_states: slots.
        num_pages: pages in each layer that has any; page p of one layer goes with page p of all. Behind them lies one
            more, which takes what is written for rows that are nobody's.
        dtype: of keys and values.
        device: of everything.

    Attributes:
        slots: by the names of :meth:`leyden.model.mixers.Mixer.slot_tensors`, [layers of the kind, slots, ...]; the
            states of lightning attention are ``"state"``, [layers, S, H, K, K] float32.
        pages: by the names of :meth:`leyden.model.mixers.Mixer.page_tensors`, [layers of the kind, P + 1, PAGE, ...];
            those of softmax attention are ``"keys"`` and ``"values"``, [layers, P + 1, PAGE, Hkv, D].
        layers: of each layer, its part of these tensors by name, [slots, ...] and [pages, PAGE, ...].
        num_states, num_pages: as given: what sequences can have.
        dtype, device: as given.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_states: int,
        num_pages: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_states, self.num_pages = num_states, num_pages
        self.dtype, self.device = dtype, torch.device(device)
        self._kinds = [mixer_of(kind) for kind in config.layer_types]
        # What nobody wrote is never read; and memory that is never written to is never taken.
        slots = _asked(config, dtype, Mixer.slot_tensors.__name__)
        self.slots = {
            name: torch.empty(layers, num_states + one.spare, *one.shape, dtype=one.dtype, device=device)
            for name, (layers, one) in slots.items()
        }
        self._zeroed = [self.slots[name] for name, (_, one) in slots.items() if one.zeroed]
        self.pages = {
            name: torch.empty(layers, num_pages + 1, PAGE, *one.shape, dtype=one.dtype, device=device)
            for name, (layers, one) in _asked(config, dtype, Mixer.page_tensors.__name__).items()
        }
        self.layers = self._layers(config)

    def of_layers(self, rows: Rows) -> list[Memory]:
        """What each layer reads and writes in the forward pass of ``rows``."""
        return [mixer.pooled(tensors, rows) for mixer, tensors in zip(self._kinds, self.layers, strict=True)]

    def _layers(self, config: ModelConfig) -> list[dict[str, torch.Tensor]]:
        everything, before, found = {**self.slots, **self.pages}, Counter(), []
        for kind, mixer in zip(config.layer_types, self._kinds, strict=True):
            names = [*mixer.slot_tensors(config, self.dtype), *mixer.page_tensors(config, self.dtype)]
            found.append({name: everything[name][before[kind]] for name in names})
            before[kind] += 1
        return found

    def begin(self, slot: int) -> None:
        """A sequence begins in ``slot``: what the slot holds is that of no token."""
        for memory in self._zeroed:
            memory[:, slot] = 0

    @property
    def nowhere(self) -> int:
        """The first place, as in :attr:`Rows.places`, of the page that no sequence has."""
        return self.num_pages * PAGE

    @classmethod
    def bytes_of(cls, config: ModelConfig, dtype: torch.dtype) -> tuple[int, int]:
        """Bytes of one slot, and of one page, over all layers."""
        slots, pages = (
            sum(layers * one.nbytes for layers, one in _asked(config, dtype, kind.__name__).values())
            for kind in (Mixer.slot_tensors, Mixer.page_tensors)
        )
        return slots, pages * PAGE


def _asked(config: ModelConfig, dtype: torch.dtype, method: str) -> Mapping[str, tuple[int, PoolTensor]]:
    """What the mixers ask for by ``method``: each tensor, and how many layers have it."""
    found: dict[str, tuple[int, PoolTensor]] = {}
    for kind, layers in Counter(config.layer_types).items():
        for name, one in getattr(mixer_of(kind), method)(config, dtype).items():
            if name in found:
                raise ValueError(f"two kinds of mixers keep a tensor named {name!r} in pools; give each its own name.")
            found[name] = layers, one
    return found
