"""The laws give the tables of their papers."""

import pytest

from leyden.study.scaling_laws import LAWS, PFLOPS_DAY, Proposal, parametric, power_laws


def law(name: str, flops: float) -> Proposal:
    (found,) = (law for law in LAWS if law.name == name)
    return found.propose(flops)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        # FLOPs, parameters and tokens of arXiv 2203.15556, Tables 3 and A3. An exponent is printed with two decimals,
        # so that sizes far from the point that the law goes through are met less closely.
        ("Chinchilla, approach 1: training curves", [(1.92e19, 400e6, 8.0e9), (5.76e23, 67e9, 1.5e12)]),
        ("Chinchilla, approach 2: equal operations", [(1.84e19, 400e6, 7.7e9), (6.88e23, 67e9, 1.7e12)]),
        (
            "Chinchilla, approach 3: parametric loss",
            [(2.21e19, 400e6, 9.2e9), (1.62e20, 1e9, 27.1e9), (1.71e24, 67e9, 4.1e12)],
        ),
    ],
)
def test_chinchilla_gives_its_tables(name: str, rows: list[tuple[float, float, float]]) -> None:
    for flops, parameters, tokens in rows:
        best = law(name, flops)
        assert best.parameters == pytest.approx(parameters, rel=0.08)
        assert best.tokens == pytest.approx(tokens, rel=0.08)
        assert 6 * best.parameters * best.tokens == pytest.approx(flops)


@pytest.mark.parametrize("flops", [1e18, 1e24])
def test_the_parametric_law_is_at_its_minimum(flops: float) -> None:
    E, A, B, alpha, beta = 1.7, 406.4, 410.7, 0.34, 0.28
    best = parametric(E, A, B, alpha, beta)(flops)

    def loss(parameters: float) -> float:
        return E + A / parameters**alpha + B / (flops / (6 * parameters)) ** beta

    assert best.loss == pytest.approx(loss(best.parameters))
    assert best.loss is not None
    assert all(loss(best.parameters * factor) > best.loss for factor in (0.9, 0.99, 1.01, 1.1))


def test_the_laws_of_minimax_are_in_pflops_days() -> None:
    at_one = law("hybrid of 7 lightning and 1 softmax layers", PFLOPS_DAY)
    assert at_one == Proposal(2.57e8, 3.70e10, 3.4797)
    softmax = law("softmax attention", 100 * PFLOPS_DAY)
    assert softmax.parameters == pytest.approx(1.82e8 * 10**1.4236)
    assert softmax.loss == pytest.approx(3.7087 * 10**-0.1596)
    assert power_laws((1, 0), (2, 1), (3, 2))(2 * PFLOPS_DAY) == Proposal(4, 12, 1)
