"""A small text, a small recipe of two stages, and its run that nothing disturbed."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leyden.data.builds import BuildRecipe, run_build

RECIPE = """
[model]
hidden_size = 32
num_hidden_layers = 3
layer_types = ["linear_attention", "full_attention", "linear_attention"]
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
rotary_dim = 8
intermediate_size = 32
num_local_experts = 4

[tokenizer]
vocab_size = 500

[data]
text = ["{text}"]

[train]
dtype = "bfloat16"
checkpoint_steps = 4

[[stage]]
name = "short"
objective = "pretrain"
steps = 6
seq_len = 64
batch_tokens = 256
micro_batch_tokens = 128
lr = 1e-2
warmup_steps = 2

[[stage]]
name = "long"
objective = "pretrain"
tokens = 1000
seq_len = 128
batch_tokens = 256
rope_theta = 80_000.0
lr = 2e-3

[evaluate]
prompts = ["the light", "a jar"]
sample_tokens = 8
"""


@pytest.fixture(scope="module", autouse=True)
def nothing_is_drawn(empty_plots: None) -> None:
    """Drawing is a third of a run's time here."""


@pytest.fixture(scope="module", autouse=True)
def builds_in_one_process() -> Iterator[None]:
    """A build of several shards otherwise starts a process for each core, which takes ten seconds of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leyden.data.builds.run.os", SimpleNamespace(cpu_count=lambda: 1))
        yield


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 documents, 300 KB, of words drawn with a seed."""
    folder = tmp_path_factory.mktemp("recipes") / "text"
    folder.mkdir()
    generator = random.Random(0)
    letters = "etaoinshrdlu"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 8))) for _ in range(500)]
    for number in range(60):
        chosen = generator.choices(words, weights=range(1, 501), k=900)
        (folder / f"{number:02}.txt").write_text(" ".join(chosen))
    return folder


@pytest.fixture(scope="session")
def recipe_file(text: Path) -> Path:
    path = text.parent / "small.toml"
    path.write_text(RECIPE.replace("{text}", str(text)))
    return path


@pytest.fixture(scope="session")
def finished(recipe_file: Path, leyden_cli: Callable[..., Any]) -> Path:
    """The directory of the whole run."""
    directory = recipe_file.parent / "finished"
    outcome = leyden_cli("run", recipe_file, "--dir", directory)
    assert outcome.code == 0, outcome.err
    assert outcome.out == ""
    (recipe_file.parent / "said.txt").write_text(outcome.err)
    return directory


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Two sources, a tenth of each held out, tokens by source."""
    for name, word in (("first", "apple"), ("second", "plum")):
        rows = [
            {"text": " ".join(f"{word} {i} {i * i} {word * (i % 3)}." for i in range(n, n + 40))} for n in range(60)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "build": {"workers": 1},
        "source": [{"name": name, "paths": [str(tmp_path / f"{name}.jsonl")]} for name in ("first", "second")],
        "stage": [{"kind": "exact"}, {"kind": "hold_out", "share": 0.1}],
        "tokens": {"vocab_size": 300, "by": "source"},
    }
    run_build(BuildRecipe.parse(recipe, "test"), tmp_path / "build")
    return tmp_path / "build"
