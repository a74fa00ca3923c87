"""Loading tells how far it is, and refuses what does not fit."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from leyden.checkpoint import load, save, stored_weights
from leyden.core.device import free_bytes
from leyden.core.errors import UserError
from leyden.model import HybridLM, preset

ModelMaker = Callable[..., HybridLM]


class _Bar:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.total = self.done = 0.0

    def advance(self, amount: float) -> None:
        self.done += amount


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[_Bar]:
    made: list[_Bar] = []

    @contextlib.contextmanager
    def progress(title: str, total: float, unit: str) -> Iterator[_Bar]:
        made.append(_Bar())
        made[-1].total = total
        yield made[-1]

    monkeypatch.setattr(stored_weights, "progress", progress)
    monkeypatch.setattr(stored_weights, "_SHOWN_BYTES", 1)
    return made


def test_a_bar_counts_what_is_read(random_model: ModelMaker, tmp_path: Path, bars: list[_Bar]) -> None:
    model = random_model(torch.bfloat16)
    save(model, None, tmp_path)
    load(tmp_path)
    assert not bars  # all of it is mapped
    load(tmp_path, int8="all")
    load(tmp_path, dtype=torch.float32)
    matrices = sum(p.nbytes for name, p in model.named_parameters() if p.dtype == torch.bfloat16)
    assert [(bar.total, bar.done) for bar in bars] == [(matrices, matrices)] * 2


def test_what_does_not_fit_is_refused_with_the_figures(
    random_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(torch.bfloat16)
    save(model, None, tmp_path)
    needed = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert stored_weights.weight_bytes(model.config, torch.bfloat16) == needed
    monkeypatch.setattr(stored_weights, "free_bytes", lambda device: needed - 1)
    with pytest.raises(UserError, match=r"need \d+\.?\d*e?-?\d* GB in bfloat16.*8 bits it fits: int8='layers' needs"):
        load(tmp_path)
    load(tmp_path, int8="layers")
    monkeypatch.setattr(stored_weights, "free_bytes", lambda device: 1)
    with pytest.raises(UserError, match="take a machine with more, or several ranks"):
        load(tmp_path, int8="all")


def test_free_memory_is_known_here() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or 1 << 20 < free < 1 << 50


@pytest.mark.parametrize(("name", "layers", "everything"), [("tiny", 0.60, 0.52), ("text-01", 0.52, 0.51)])
def test_8_bits_are_about_half_of_bfloat16(name: str, layers: float, everything: float) -> None:
    config = preset(name)
    plain = stored_weights.weight_bytes(config, torch.bfloat16)
    assert stored_weights.weight_bytes(config, torch.bfloat16, "layers") < layers * plain
    assert stored_weights.weight_bytes(config, torch.bfloat16, "all") < everything * plain
