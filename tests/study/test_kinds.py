"""What studies of scaling and speed say of results whose laws are known."""

from dataclasses import replace

import numpy as np
import pytest

from leyden.core.errors import UserError
from leyden.study.grid import Point
from leyden.study.kinds import KINDS, Measured
from leyden.study.outcome import Result
from leyden.study.scaling_laws import PFLOPS_DAY

pytestmark = pytest.mark.usefixtures("empty_plots")
BUDGETS = (1e15, 1e16, 1e17, 1e18)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def measured(loss: float, size: float, tokens: float, rate: float = 1.0, /, **coordinates: str) -> Measured:
    name = ", ".join(coordinates.values())
    point = Point(name, name, coordinates, 0, "", round(size), round(size), round(tokens), 6 * size * tokens)
    return point, Result(name, "done", "", 1.0, 1, loss, loss, round(tokens), 1.0, rate, "0.0.1")


def planted(architecture: str, alpha: float) -> list[Measured]:
    """Losses whose best size grows as the root of the budget, with an equal exponent of size and tokens."""
    generator = np.random.default_rng(1)
    runs = []
    for budget in BUDGETS:
        for factor in FACTORS:
            size = (budget / 6) ** 0.5 * factor
            tokens = budget / (6 * size)
            loss = (400 / size**alpha + 400 / tokens**alpha) * (1 + 1e-4 * generator.normal())
            runs.append(measured(loss, size, tokens, architecture=architecture, size=f"{factor}", flops=f"{budget:g}"))
    return runs


def test_each_architecture_has_laws_of_its_own() -> None:
    findings = KINDS["scaling"].read([*planted("softmax", 0.3), *planted("hybrid", 0.2)])
    (table,) = findings.tables
    assert [row[0] for row in table.rows] == ["softmax", "hybrid"]
    assert len(findings.plots) == 2
    for group, alpha in (("softmax", 0.3), ("hybrid", 0.2)):
        laws = findings.figures[group]
        assert isinstance(laws, dict)
        assert laws["parameters"]["exponent"] == pytest.approx(0.5, rel=0.02)
        assert laws["tokens"]["exponent"] == pytest.approx(0.5, rel=0.02)
        assert laws["loss"]["exponent"] == pytest.approx(-alpha / 2, rel=0.02)
    scale, *_ = table.rows[0][1].split()
    assert float(scale) == pytest.approx(800 / (PFLOPS_DAY / 6) ** 0.15, rel=0.01)  # the loss at one PFLOP/s-day


def test_a_group_with_too_few_runs_is_named_and_the_others_are_fitted() -> None:
    findings = KINDS["scaling"].read([*planted("softmax", 0.3), *planted("hybrid", 0.2)[: len(FACTORS)]])
    assert [row[0] for row in findings.tables[0].rows] == ["softmax"]
    assert any(one.startswith("hybrid: scaling laws need at least 4 budgets") for one in findings.remarks)


def test_a_grid_that_cannot_answer_is_refused_before_it_runs() -> None:
    points = [point for point, _ in planted("softmax", 0.3)]
    KINDS["scaling"].check(points)
    with pytest.raises(UserError, match="the axis 'size' has 3 values, and a study of scaling laws needs at least 4"):
        KINDS["scaling"].check([one for one in points if one.coordinates["size"] in ("0.25", "0.5", "1.0")])
    with pytest.raises(UserError, match="needs an axis named 'flops'"):
        KINDS["scaling"].check([replace(one, coordinates={"size": one.coordinates["size"]}) for one in points])


def test_speed_is_the_median_by_length() -> None:
    rates = {"64": (5.0, 7.0, 30.0), "512": (3.0,)}
    runs = [measured(1, 1, 1, rate, model="m", length=length) for length in rates for rate in rates[length]]
    findings = KINDS["speed"].read(runs)
    assert findings.figures == {"m": {64: 7.0, 512: 3.0}}
    assert findings.tables[0].rows == (("m", "64", "3", "7", "5", "30"), ("m", "512", "1", "3", "3", "3"))
