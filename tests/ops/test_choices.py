"""Sizes of blocks: from the caches of machines that are made up; and what is computed in them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from exactness import random

from leyden.ops import lightning_attention
from leyden.ops.choices import CHOICES, LIGHTNING_SEGMENT, RANGED_SCORES, SOFTMAX_SCORES, WIDENED_WEIGHTS
from leyden.ops.lightning_attention import chunks
from leyden.ops.native import processor

KIB, MIB = 1 << 10, 1 << 20
LAPTOP = {1: 48 * KIB, 2: 1280 * KIB, 3: 12 * MIB}
SERVER = {1: 32 * KIB, 2: 512 * KIB, 3: 32 * MIB}
LARGE = {1: 32 * KIB, 2: 64 * MIB, 3: 1 << 30}
BOARD = {1: 32 * KIB, 2: 512 * KIB}


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setattr(processor, "_CACHES", tmp_path)
    processor.caches.cache_clear()
    yield tmp_path
    processor.caches.cache_clear()


def report(folder: Path, *caches: tuple[str, str, str]) -> None:
    for number, files in enumerate(caches):
        index = folder / f"index{number}"
        index.mkdir()
        for name, text in zip(("level", "type", "size"), files, strict=True):
            (index / name).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("caches", "sizes"),
    [
        (SERVER, (1 << 19, 32 * MIB, 16 * MIB, 1 << 18)),
        (LAPTOP, (1 << 17, 8 * MIB, 4 * MIB, 1 << 19)),
        (BOARD, (1 << 16, 4 * MIB, 2 * MIB, 1 << 18)),
        (LARGE, (1 << 21, 128 * MIB, 64 * MIB, 1 << 22)),
        ({2: 4 * MIB}, (1 << 16, 4 * MIB, 2 * MIB, 1 << 21)),
        ({3: 16 * MIB}, (1 << 18, 16 * MIB, 8 * MIB, 1 << 22)),
        ({}, (1 << 19, 32 * MIB, 16 * MIB, 1 << 19)),
    ],
)
def test_sizes_follow_from_the_caches(caches: dict[int, int], sizes: tuple[int, ...]) -> None:
    choices = (LIGHTNING_SEGMENT, SOFTMAX_SCORES, RANGED_SCORES, WIDENED_WEIGHTS)
    assert tuple(choice.of(caches) for choice in choices) == sizes
    assert choices == CHOICES
    for choice, size in zip(choices, sizes, strict=True):
        source = "from level" if caches else "from assumed caches"
        assert choice.described(caches).startswith(f"{size:,} {choice.unit}, {source}")


def test_the_source_names_the_cache_that_counts() -> None:
    assert LIGHTNING_SEGMENT.described(LAPTOP) == "131,072 elements, from level 3 of 12,288 KiB"


def test_caches_as_the_system_reports_them(system: Path) -> None:
    whole = [("1", "Data", "48K"), ("1", "Instruction", "64K"), ("2", "Unified", "2M"), ("3", "Unified", "33792K")]
    report(system, whole[3], *whole[:3])
    assert list(processor.caches().items()) == [(1, 48 * KIB), (2, 2 * MIB), (3, 33 * MIB)]


@pytest.mark.parametrize("size", ["", "-", "0K"])
def test_caches_that_are_not_reported(system: Path, size: str) -> None:
    report(system, ("2", "Unified", size))
    assert processor.caches() == {}
    assert WIDENED_WEIGHTS.here == WIDENED_WEIGHTS.of({})


def test_no_length_of_a_segment_changes_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (random(1, 1000, 2, 16, dtype=torch.float32, seed=seed).requires_grad_() for seed in range(3))
    found = []
    for elements in (1 << 12, 1 << 14, 1 << 19):
        monkeypatch.setattr(chunks, "_SEGMENT_ELEMENTS", elements)
        out, state = lightning_attention(q, k, v, torch.tensor([0.004, 0.9]), backend="torch")
        found.append((out, state, *torch.autograd.grad(out.sum() + state.sum(), (q, k, v))))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
