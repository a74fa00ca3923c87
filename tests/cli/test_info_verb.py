"""``leyden info --chip`` and ``leyden info --flops``."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leyden.cli.app import app
from leyden.core.chips import CHIPS, chip_named
from leyden.core.errors import UserError
from leyden.core.roofline import Cost, Speed
from leyden.model import preset
from leyden.model.operations import Operation, decode_operations, forward_operations
from leyden.recipes.roofline import least_seconds, ridge_batch, total


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_roofline_has_a_row_an_op_and_a_batch() -> None:
    text = run("info", "tiny", "--chip", "H100", "--length", "1000")
    assert "NVIDIA H100 SXM: 989.5 TFLOP/s in bfloat16, 3.35 TB/s, 80 GB" in text
    assert "the ridge is at 295 FLOPs a byte" in text
    for operation in forward_operations(preset("tiny"), 1000):
        row = next(line for line in text.splitlines() if line.startswith(operation.name + " "))
        assert f"{operation.cost.flops * operation.layers:.3g}" in row
    seconds = least_seconds(decode_operations(preset("tiny"), 1000, 128), CHIPS["h100"].speed)
    (rate,) = re.findall(r"^ +128 .* ([\d,]+)$", text, re.MULTILINE)
    assert int(rate.replace(",", "")) == round(128 / seconds)


def test_weights_that_one_chip_cannot_hold_are_told() -> None:
    assert "912.2 GB, are more than its memory" in run("info", "text-01", "--chip", "h200")
    assert "more than its memory" not in run("info", "1b", "--chip", "h200")


def test_each_op_has_its_own_bound() -> None:
    speed = Speed(bytes_per_second=10.0, flops_per_second=100.0)
    moving, computing = Operation("a", 2, Cost(50, 100)), Operation("b", 1, Cost(10, 700))
    assert speed.ridge == 10
    assert least_seconds([moving, computing], speed) == 2 * 5 + 7
    assert total([moving, computing]) == Cost(110, 900)


def test_decoding_reaches_the_ridge_where_weights_outweigh_states() -> None:
    """At the fewest such sequences, and not at one fewer; a chip with a high ridge never reaches it."""
    config = preset("1b")
    speed = Speed(bytes_per_second=1.0, flops_per_second=8.0)
    batch = ridge_batch(config, 8192, speed)
    assert batch is not None
    intensity = [total(decode_operations(config, 8192, n)).intensity for n in (batch - 1, batch)]
    assert intensity[0] < 8 <= intensity[1]
    assert ridge_batch(config, 8192, CHIPS["h100"].speed) is None


def test_a_budget_is_sizes_with_their_sources_and_days() -> None:
    text = run("info", "--flops", "1e21", "--chip", "a100")
    hybrid = next(line for line in text.splitlines() if line.startswith("hybrid"))
    assert hybrid.split()[-4:] == ["1.32B", "117.16B", "89", "2.887"]
    assert "arXiv 2501.08313, Table 2" in text
    assert "NVIDIA A100 SXM 80 GB: 92.7 days at 40% of its peak of 312 TFLOP/s" in text  # 1e21 / 312e12 / 86400 / 0.4
    assert "This model" not in text
    assert "in training at 8,192 tokens, so 157.84B tokens, 179 for each of its 880.8M" in run(
        "info", "1b", "--flops", "1e21"
    )


@pytest.mark.parametrize("flops", ["0", "nan", "inf", "-1e21"])
def test_a_budget_that_is_none_is_refused(flops: str) -> None:
    with pytest.raises(UserError, match="--flops is a number of operations above 0, as in 1e21"):
        run("info", f"--flops={flops}")


def test_an_unknown_chip_is_refused_with_the_known() -> None:
    with pytest.raises(UserError, match=r"'h101' is no chip of the table; there are a100, .*; did you mean 'h100'\?"):
        run("info", "tiny", "--chip", "h101")
    with pytest.raises(UserError, match="h101"):
        chip_named("h101")


def test_the_page_has_the_table_of_chips() -> None:
    page = (Path(__file__).parents[2] / "docs/costs.md").read_text()
    for name, chip in CHIPS.items():
        figures = (chip.flops_per_second / 1e12, chip.bytes_per_second / 1e12, chip.memory_bytes / 1e9)
        row = f"| `{name}` | {chip.title} | {' | '.join(f'{figure:g}' for figure in figures)} | {chip.source} |"
        assert row in page


def test_a_budget_beside_ranks_is_refused() -> None:
    with pytest.raises(UserError, match="leave --gpus and --serve out"):
        run("info", "tiny", "--flops", "1e21", "--gpus", "8")
    with pytest.raises(UserError, match="or --machine, or --flops"):
        run("info")
