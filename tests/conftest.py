"""Fixtures that several rooms' tests share.

Rooms are imported where they are used: the tests of ``ops`` run on a machine with torch and triton alone.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from leyden.model import HybridLM

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which FSDP and the compiler do too

# A busy machine makes single examples slow; how long the tests take is not what they test. The fast tests try the same
# examples in every run, so that a change's fault is the change's; `make test-all` searches for others.
settings.register_profile("leyden", deadline=None, derandomize=True, database=None)
settings.register_profile("search", deadline=None, max_examples=300, print_blob=True)
settings.load_profile("leyden")

_SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "layer_types": ("linear_attention", "full_attention", "linear_attention"),
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "intermediate_size": 16,
    "num_local_experts": 4,
}


def pytest_collection_finish() -> None:
    """What imports have made stays; the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def random_model() -> Callable[..., HybridLM]:
    """Builds a small hybrid whose weights are large enough that a wrong line shows in the logits."""
    from leyden.model import HybridLM, ModelConfig

    def build(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> HybridLM:
        model = HybridLM(ModelConfig.parse({**_SMALL, **changes}, "test model"))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                values = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.3 * values if parameter.ndim == 1 else 0.25 * values)
        return model.to(dtype).eval()

    return build


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Tests interrupt programs and fill disks, but no machine loses its power: what is written is there at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def fast_interpreter() -> Iterator[None]:
    """Kernels are interpreted without what Triton's interpreter does again and again; see ``quick_interpreter.py``."""
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield
        return
    from quick_interpreter import quick_interpreter  # imports triton, which not every machine has

    with quick_interpreter():
        yield


@pytest.fixture(scope="module")
def empty_plots() -> Iterator[None]:
    """Pages of a module's tests have no plots, which take a second each; the tests of ``evaluate`` draw."""
    from leyden.core import page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "_svg", lambda figure, name: f'<svg class="plot" aria-label="{name}"></svg>')
        yield


@dataclass(frozen=True)
class Outcome:
    """How a command of the command line ended."""

    code: int | str | None
    out: str
    err: str


@pytest.fixture(scope="session")
def leyden_cli() -> Callable[..., Outcome]:
    """Runs ``leyden ARGUMENTS`` in this process, as a fresh process costs seconds; exceptions come through."""
    from leyden.cli import main

    def run(*arguments: object, stdin: str = "") -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            patch.setattr("sys.argv", ["leyden", *map(str, arguments)])
            patch.setattr("sys.stdin", io.StringIO(stdin))
            main()
        return Outcome(ended.value.code, out.getvalue(), err.getvalue())

    return run
