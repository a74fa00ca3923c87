"""Several adapters on one model, none of them merged: each row of a pass is computed with the one that it asks for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from leyden.core.errors import UserError
from leyden.model.lm import HybridLM
from leyden.model.lora import LORA, ExpertsLowRank, LowRank, is_experts
from leyden.model.mixers import Mixer
from leyden.model.rows import GRAIN
from leyden.ops import Int8Matrices, LowRankExperts, Routing


@dataclass
class AdapterRows:
    """Which rows of a pass are computed with which adapter.

    Attributes:
        of: by the adapter's name, the rows [n] int64, possibly with the first one again behind them, and how many they
            are. Rows of the model itself are under ``""``. Empty: all rows are.
    """

    of: dict[str, tuple[torch.Tensor, int]] = field(default_factory=dict)

    def choose(self, names: list[str], device: torch.device) -> None:
        """Take for each row the adapter of its name.

        Args:
            names: of the rows' adapters; ``""`` for none.
            device: of the model.
        """
        self.of = {}
        if not any(names):
            return
        for name in dict.fromkeys(names):
            rows = [row for row, own in enumerate(names) if own == name]
            # Products of a whole number of grains have the same bits whatever else is computed with them.
            filled = [*rows, *[rows[0]] * (-len(rows) % GRAIN)]
            self.of[name] = torch.tensor(filled, device=device), len(rows)

    def each(self, adapters: Mapping[str, Any]) -> Iterator[tuple[Any, torch.Tensor, int]]:
        """Of the ``adapters`` those that are asked for: each with its rows and their number."""
        for name, (rows, count) in self.of.items():
            if name in adapters:
                yield adapters[name], rows, count


class _Several(nn.Module):
    """The adapters of one module."""

    def __init__(self, rows: AdapterRows, adapters: Mapping[str, LowRank | ExpertsLowRank]) -> None:
        super().__init__()
        self.of: dict[str, Any] = dict(adapters)
        self.parts = nn.ModuleList(adapters.values())
        """For the weights to be seen: names of adapters may hold what names of modules may not."""
        self.rows = rows


class SeveralLowRank(_Several):
    """Of one projection."""

    def add(self, module: nn.Module, arguments: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        """A hook behind the projection: add to the rows [.., D] to [.., F] that ask for it."""
        x = arguments[0]
        for adapter, rows, count in self.rows.each(self.of):
            added: torch.Tensor = adapter(x.reshape(-1, x.shape[-1])[rows])[:count]
            out = out.reshape(-1, out.shape[-1]).index_add(0, rows[:count], added).view(out.shape)
        return out


class SeveralExperts(_Several):
    """Of the experts of one layer."""

    def __init__(self, rows: AdapterRows, adapters: Mapping[str, LowRank | ExpertsLowRank], compute: Any) -> None:
        super().__init__(rows, adapters)
        self._compute = compute

    def compute(
        self,
        x: torch.Tensor,
        gate_up: torch.Tensor | Int8Matrices,
        down: torch.Tensor | Int8Matrices,
        routing: Routing,
        additions: LowRankExperts | None = None,
    ) -> torch.Tensor:
        """In the place of :func:`leyden.model.experts.compute`."""
        assert additions is None, "adapters of a set are chosen by row"
        if not any(self.rows.each(self.of)):
            return self._compute(x, gate_up, down, routing)
        out = torch.zeros_like(x)
        for name, (rows, count) in self.rows.of.items():
            chosen = replace(routing, experts=routing.experts[rows], weights=routing.weights[rows])
            own = self.of[name].stacks(x.dtype) if name in self.of else ()
            out[rows[:count]] = self._compute(x[rows], gate_up, down, chosen, *own)[:count]
        return out


class AdapterSet:
    """The adapters of a model that is served.

    Args:
        model: without adapters, on one process, in floats or in 8 bits; changed in place.
        adapters: by the name that requests choose them by: those of every module, by the module's name.

    Attributes:
        names: of the adapters.
        rows: which rows of the next pass are computed with which of them.

    Raises:
        UserError: an adapter of a projection that does not meet each row by itself.
    """

    def __init__(self, model: HybridLM, adapters: Mapping[str, Mapping[str, LowRank | ExpertsLowRank]]) -> None:
        self.names = tuple(adapters)
        self.rows = AdapterRows()
        device = model.norm.weight.device
        by_module: dict[str, dict[str, LowRank | ExpertsLowRank]] = {}
        for name, of_modules in adapters.items():
            for module, adapter in of_modules.items():
                by_module.setdefault(module, {})[name] = adapter.to(device, model.dtype).requires_grad_(False)
        _check(model, by_module)
        for name, own in by_module.items():
            module: Any = model.get_submodule(name)
            if is_experts(module):
                several = SeveralExperts(self.rows, own, module.compute)
                module.compute = several.compute
            else:
                several = SeveralLowRank(self.rows, own)
                module.register_forward_hook(several.add)
            module.add_module(LORA, several)
        model.adapters = self


def _check(model: HybridLM, by_module: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse adapters that no row can choose."""
    for name, adapters in by_module.items():
        owner, _, leaf = name.rpartition(".")
        mixer = model.get_submodule(owner)
        if isinstance(mixer, Mixer) and leaf in mixer.not_by_row:
            raise UserError(
                f"the adapter '{next(iter(adapters))}' adds to {name}, which works on what is remembered of a "
                f"sequence and not on its rows: it cannot be chosen by row. Merge it into the model, or train one that "
                f"leaves {leaf} out (train.lora.targets)."
            )
