"""``leyden run`` with adapters under torchrun writes the adapter of one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rank_runs
from safetensors.torch import load_file

LORA = ("--set", "train.lora.rank=2", "--set", 'train.lora.targets=["attention", "experts"]')


@pytest.mark.slow
@pytest.mark.parametrize("plan", [("cp=2", "ep=2"), ("tp=2",), ("pp=2",)], ids=str)
def test_two_ranks_write_the_adapter_of_one_process(
    tmp_path: Path, leyden_cli: Callable[..., Any], plan: tuple[str, ...]
) -> None:
    recipe = rank_runs.write_recipe(tmp_path / "recipe")
    text = recipe.read_text().replace("rope_theta = 80_000.0\n", "micro_batch_tokens = 128\n")
    text = text.replace("num_key_value_heads = 1", "num_key_value_heads = 2")  # which two tensor ranks divide
    recipe.write_text(text.replace("[[0, 256], [700, 512]]", "256"))
    assert leyden_cli("run", recipe, "--dir", tmp_path / "base", "--set", "stage.0.steps=1").code == 0
    tuned = rank_runs.from_model(recipe, tmp_path / "base", tmp_path / "tuned.toml")
    outcome = leyden_cli("run", tuned, "--dir", tmp_path / "alone", *LORA)
    assert outcome.code == 0, outcome.err
    sizes = [word for axis in plan for word in ("--set", f"parallel.{axis}")]
    ended = rank_runs.torchrun("run", tuned, "--dir", tmp_path / "ranks", *LORA, *sizes)
    assert ended.code == 0, ended.said
    ours, theirs = (rank_runs.metrics(tmp_path / name) for name in ("ranks", "alone"))
    for name in ("loss", "grad_norm"):
        assert [r[name] for r in ours] == pytest.approx([r[name] for r in theirs], rel=1e-4), name
    ours, theirs = (load_file(tmp_path / name / "final" / "adapter_model.safetensors") for name in ("ranks", "alone"))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4
