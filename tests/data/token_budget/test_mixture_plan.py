"""The mixture's plan: epochs worked out by hand, invariants over random corpora, and plans that cannot be."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data.token_budget import CLASSES, Cell, MixturePlan, QualityClass, draw_mixture, plan_mixture

WEB = [Cell("web", "low", 30, 300.0), Cell("web", "middle", 40, 400.0), Cell("web", "high", 30, 300.0)]
BOOKS = [Cell("books", "low", 1, 30.0), Cell("books", "middle", 1, 40.0), Cell("books", "high", 1, 30.0)]


def epochs(plan: MixturePlan) -> dict[str, float]:
    return {cell.group: cell.epochs for cell in plan.cells}


def test_one_uniform_epoch_tilted_by_hand() -> None:
    # Of 1000 tokens at weights 1/2, 1, 2: 300 * 0.5 + 400 + 300 * 2 = 1150 a level, so the level is 1000 / 1150.
    plan = plan_mixture(WEB)
    level = 1000 / 1150
    assert epochs(plan) == pytest.approx({"web/low": level / 2, "web/middle": level, "web/high": 2 * level})
    assert plan.largest_budget == 300 * 2 + 400 * 3 + 300 * 4
    assert [cell.epochs_of_kept for cell in plan.cells] == pytest.approx([1, 1, 2 * level])
    assert [cell.kept_tokens for cell in plan.cells] == pytest.approx([150 * level, 400 * level, 300])
    assert sum(plan.for_loader()["point"][0]["weights"].values()) == pytest.approx(1)


def test_a_class_at_its_cap_leaves_the_rest_to_the_others() -> None:
    # Of 2600: high stands at 4 epochs (1200 tokens) from level 2 on; 1400 are left for 300 / 2 + 400 a level: 2.545.
    plan = plan_mixture(WEB, 2600)
    level = 1400 / 550
    assert epochs(plan) == pytest.approx({"web/low": level / 2, "web/middle": level, "web/high": 4})


def test_the_summary_says_what_is_there_and_what_is_repeated() -> None:
    assert plan_mixture(WEB, 2600).summary() == (
        "2,600 tokens asked, about 1,000 there; about 1,000 stay, each document once: to make up the budget a run "
        "repeats them 2.60 times on the whole, web/high the most (4.00 times); its [stage.mixture] is in report.json, "
        "for_loader"
    )
    assert plan_mixture(WEB, 10).summary() == (
        "10 tokens asked, about 1,000 there; about 10 stay, each document once; no document is repeated"
    )


def test_the_floor_keeps_the_worst() -> None:
    classes = (CLASSES[0].model_copy(update={"weight": 0.001}), *CLASSES[1:])
    plan = plan_mixture(WEB, 1000, classes=classes, floor=0.2)
    assert epochs(plan)["web/low"] == pytest.approx(0.2)
    assert sum(cell.tokens for cell in plan.cells) == pytest.approx(1000)


def test_every_category_keeps_its_share() -> None:
    plan = plan_mixture([*WEB, *BOOKS], 2200)
    for name, size in (("web", 1000), ("books", 100)):
        assert sum(c.tokens for c in plan.cells if c.category == name) == pytest.approx(2200 * size / 1100)


def test_given_shares_and_the_largest_budget() -> None:
    # Books bear 30 * 2 + 40 * 3 + 30 * 4 = 300 tokens; at a tenth of the budget that is 3000, and all of web's caps.
    plan = plan_mixture([*WEB, *BOOKS], 2000, shares={"web": 9, "books": 1})
    assert plan.largest_budget == pytest.approx(min(300 / 0.1, 3000 / 0.9))
    assert plan.limited_by == "books"
    with pytest.raises(UserError, match=r"'books' \(needs 400, has 300.*largest possible budget is 3,000"):
        plan_mixture([*WEB, *BOOKS], 4000, shares={"web": 9, "books": 1})


@given(
    sizes=st.lists(st.lists(st.floats(0, 1e6), min_size=3, max_size=3), min_size=1, max_size=5),
    share=st.floats(0.01, 1.0),
    floor=st.floats(0.01, 1.0),
)
def test_plans_take_what_is_asked_and_respect_caps(sizes: list[list[float]], share: float, floor: float) -> None:
    cells = [
        Cell(f"c{number}", rule.name, 1, size)
        for number, row in enumerate(sizes)
        for rule, size in zip(CLASSES, row, strict=True)
        if size > 1e-3
    ]
    if not cells:
        return
    largest = plan_mixture(cells, 1e-3).largest_budget
    plan = plan_mixture(cells, share * largest, floor=floor)
    assert sum(cell.tokens for cell in plan.cells) == pytest.approx(share * largest, rel=1e-6)
    total = sum(cell.num_tokens for cell in cells)
    for category, group in itertools.groupby(plan.cells, key=lambda cell: cell.category):
        own = list(group)
        there = sum(cell.num_tokens for cell in own)
        assert sum(c.tokens for c in own) == pytest.approx(share * largest * there / total, rel=1e-6), category
        for cell in own:
            least = min(floor * share * largest / total, cell.max_epochs)
            assert least * (1 - 1e-9) <= cell.epochs <= cell.max_epochs * (1 + 1e-9)
        assert [c.epochs for c in own] == sorted(c.epochs for c in own)


def test_a_plan_is_read_back_printed_and_drawn(tmp_path: Path) -> None:
    plan = plan_mixture([*WEB, *BOOKS], 2200)
    plan.save(tmp_path / "plan.json")
    assert MixturePlan.load(tmp_path / "plan.json") == plan
    from leyden.data.loader.mixture_schedule import MixtureSchedule

    loader = MixtureSchedule.parse(plan.for_loader(), "plan")
    assert loader.sources == sorted(cell.group for cell in plan.cells)
    assert loader.max_epochs["web/low"] == 2
    assert len(plan.table().splitlines()) == 2 + 6
    draw_mixture(plan, tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").read_text().count("<svg") == 1
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(UserError, match="is no mixture plan"):
        MixturePlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": 0}, "must be positive"),
        ({"tokens": 1e9}, "largest possible budget is 3,000"),
        ({"floor": 0.0}, "nothing is wiped out"),
        ({"shares": {"web": 1.0, "news": 1.0}}, "not in the corpus: ['news']"),
        ({"shares": {"web": 0.0}}, "keeps a share"),
        (
            {"classes": (QualityClass(name="all", share=1, weight=1, max_epochs=1),)},
            "is no class of the mixture; there are: all",
        ),
        ({"cells": []}, "no documents to mix"),
    ],
)
def test_plans_that_cannot_be(changes: dict, says: str) -> None:
    arguments = {"cells": WEB, "tokens": None} | changes
    with pytest.raises(UserError) as refused:
        plan_mixture(arguments.pop("cells"), arguments.pop("tokens"), **arguments)
    assert says in str(refused.value)
