"""``leyden plan`` and ``leyden info --gpus``."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from leyden.checkpoint.stored_weights import weight_bytes
from leyden.cli.app import app
from leyden.cli.options import size_of
from leyden.core.errors import UserError
from leyden.model import count_model, preset
from leyden.model.quantized import Int8
from leyden.parallel import ParallelConfig
from leyden.parallel.planner import StepShape, check_plan
from leyden.recipes.info import bytes_text


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
    axes = {"pp": 2, "cp": 2, "tp": 4, "ep": 32, "etp": 8}
    settings = [part for axis, size in axes.items() for part in ("--set", f"parallel.{axis}={size}")]
    text = _run("info", "text-01", "--gpus", "2048", "--micro-batch-tokens", "1048576", *settings)
    assert "456.09B" in text
    assert "pp=2 dp_shard=128 cp=2 tp=4 ep=32 etp=8" in text
    for axis in ("fsdp_dense", "fsdp_experts", "tp", "ep", "stage", "dense", "world"):
        assert f"sent over {axis} " in text
    assert "memory a rank" in text
    assert "fits 80 GB" in text
    assert "binds" in text


def test_a_plan_that_does_not_fit_has_no_time() -> None:
    text = _run("info", "text-01", "--gpus", "8")
    assert "does not fit 80 GB" in text
    assert "MFU" not in text
    assert "does not fit 1 GB" in _run("info", "1b", "--gpus", "2", "--memory", "1GB")


def test_an_impossible_plan_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError) as raised:
        _run("info", "text-01", "--gpus", "2048", "--set", "parallel.tp=3")
    assert "tp = 3 does not divide 64 attention heads" in str(raised.value)
    assert "Nearest plans that work" in str(raised.value)


def test_a_recipe_has_lengths_of_its_own() -> None:
    text = _run("info", "quickstart", "--gpus", "4", "--set", "parallel.cp=4", "--set", "parallel.ep=2")
    assert "cp=4 ep=2" in text
    assert "2,048 in 1 micro-batches" in text


def _served(*arguments: str) -> dict[str, str]:
    lines = _run("info", *arguments, "--serve").splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition("  ") for line in lines)}


def test_what_serving_takes() -> None:
    rows = _served("text-01", "--gpus", "8", "--int8", "layers", "--memory", "80GB")
    assert rows["plan"] == "tp=8 ep=8"
    assert rows["weights a GPU"].startswith("53.47 GiB (layers in 8 bits")
    assert rows["a sequence"] == "35 MiB of state at any length, and 5,120 bytes a token, on each GPU"
    assert rows["fits"].startswith("32 sequences (--max-sequences) with 1.094 GiB of states")
    assert "more than the 74.51 GiB" in _served("text-01", "--gpus", "8")["does not fit"]
    with pytest.raises(UserError, match="tp = 3 does not divide 64 attention heads"):
        _served("text-01", "--gpus", "3")
    with pytest.raises(UserError, match=r"'tp'.*given: 'many'"):
        _served("text-01", "--gpus", "8", "--set", "parallel.tp=many")
    with pytest.raises(UserError, match="take --int8 layers"):
        _served("text-01", "--gpus", "8", "--int8", "all")


@pytest.mark.parametrize("int8", ["none", "layers", "all"])
def test_what_serving_takes_is_what_a_model_weighs(int8: Int8) -> None:
    for name in ("tiny", "1b"):
        told = _served(name, "--int8", int8)["weights a GPU"]
        assert told.startswith(bytes_text(weight_bytes(preset(name), torch.bfloat16, int8)) + " ")


@pytest.mark.parametrize("axes", ["ep=2", "etp=2"])
def test_what_two_gpus_hold_is_the_model_and_once_more_what_both_have(axes: str) -> None:
    model = preset("tiny")
    count = count_model(model)
    rows = _served("tiny", "--gpus", "2", "--set", "parallel.tp=2", "--set", f"parallel.{axes}")
    whole = _served("tiny")
    each, all_of_it = (float(found["weights a GPU"].split(" MiB")[0]) * 2**20 for found in (rows, whole))
    # Routers and the norms over hidden states are whole on both; the norms of lightning heads are divided.
    both = 4 * (count.float32_parameters - 7 * model.num_attention_heads * model.head_dim)
    assert abs(2 * each - all_of_it - both) < 0.02 * 2**20


def test_the_page_of_minimax_prints_what_the_command_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "minimax.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\nleyden (info text-01 --serve .*)\n```\n\n```\n(.*?)```", page, re.DOTALL)
    assert block is not None
    command, printed = block.groups()
    assert _run(*command.split()) == printed


def test_sizes() -> None:
    assert size_of("80GiB") == 80 * 2**30
    assert size_of("80GB") == 80e9
    assert size_of("1.5 TB") == 1.5e12
    with pytest.raises(UserError, match="is no size"):
        size_of("many")
