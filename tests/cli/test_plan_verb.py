"""``leyden plan`` and ``leyden info --gpus``."""

import tomllib

import pytest
from typer.testing import CliRunner

from leyden.cli.app import app
from leyden.cli.plan import size_of
from leyden.core.errors import UserError
from leyden.model import preset
from leyden.parallel import ParallelConfig
from leyden.parallel.planner import StepShape, check_plan


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_plan_is_a_table_and_a_section_to_paste() -> None:
    text = _run("plan", "tiny", "--gpus", "8", "--length", "2048", "--best", "3")
    assert "tiny on 8 ranks, 16,384 tokens a step" in text
    section = tomllib.loads(text[text.index("[parallel]") :])["parallel"]
    micro = int(text.split("micro_batch_tokens = ")[1].split(":")[0].replace(",", ""))
    step = StepShape(2048, micro, 16384 // micro)
    assert check_plan(ParallelConfig(**section), 8, preset("tiny"), step).world == 8


def test_info_tells_memory_and_bytes_of_a_plan() -> None:
    text = _run("info", "text-01", "--gpus", "2048", "--set", "parallel.tp=8", "--set", "parallel.ep=32")
    assert "456.09B" in text
    assert "dp_shard=256 tp=8 ep=32" in text
    for axis in ("fsdp_dense", "fsdp_experts", "tp", "ep", "stage", "dense", "world"):
        assert f"sent over {axis} " in text
    assert "memory a rank" in text
    assert "binds" in text


def test_an_impossible_plan_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError) as raised:
        _run("info", "text-01", "--gpus", "2048", "--set", "parallel.tp=3")
    assert "tp = 3 does not divide 64 attention heads" in str(raised.value)
    assert "Nearest plans that work" in str(raised.value)


def test_a_recipe_has_lengths_of_its_own() -> None:
    text = _run("info", "quickstart", "--gpus", "4", "--set", "parallel.cp=4", "--set", "parallel.ep=2")
    assert "cp=4 ep=2" in text
    assert "2,048 in 1 micro-batches" in text


def test_sizes() -> None:
    assert size_of("80GB") == 80e9
    assert size_of("1.5 TB") == 1.5e12
    with pytest.raises(UserError, match="is no size"):
        size_of("many")
