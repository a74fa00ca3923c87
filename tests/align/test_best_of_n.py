"""Best-of-n: the choice, and its expected value against every subset that could be drawn."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.align.rewards.best_of_n import best_of_curve, best_responses, judged_choice, value_of_best
from leyden.align.sampling.build import what_best_is_worth
from leyden.core.errors import UserError


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(-1, 1)), min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_the_value_of_the_best_is_the_mean_over_all_subsets(pairs, data):
    rewards, values = np.array(pairs, np.float64).T
    n = data.draw(st.integers(1, len(pairs)))
    found = []
    for subset in itertools.combinations(range(len(pairs)), n):
        highest = max(rewards[list(subset)])
        found.append(np.mean([values[one] for one in subset if rewards[one] == highest]))
    assert value_of_best(rewards, values, n) == pytest.approx(np.mean(found), abs=1e-12)


def test_right_and_wrong_as_their_own_reward_is_pass_at_k():
    right = np.array([1.0, 0, 0, 1, 0, 0, 0])
    for k in range(1, 8):
        assert value_of_best(right, right, k) == pytest.approx(1 - math.comb(5, k) / math.comb(7, k))


@pytest.mark.parametrize("n", [0, 3])
def test_more_than_there_are_cannot_be_drawn(n):
    with pytest.raises(UserError, match="give 1 to 2"):
        value_of_best(np.zeros(2), np.zeros(2), n)


def rows(prompt: Any, rewards: list[Any]) -> list[tuple[dict[str, Any], Any]]:
    return [({"prompt": prompt, "response": str(n), "line": n}, reward) for n, reward in enumerate(rewards)]


def test_the_first_of_the_best_is_taken_and_what_has_no_reward_is_not():
    found = list(best_responses([*rows("p", [0.5, None, 0.75, 0.75]), *rows("none", [None])]))
    assert found == [{"prompt": "p", "response": "2", "reward": 0.75, "of": 3}]


def test_a_curve_of_prompts():
    group = [(0.1, 0.0), (0.9, 1.0), (0.5, 0.0), (0.2, 1.0), (0.7, None)]
    chat = [{"role": "user", "content": "q"}]
    given_rows = [(row, *both) for row, both in [*rows("p", group), *rows(chat, group[::-1]), *rows("one", group[:1])]]
    one, two, four = judged_choice(given_rows)
    assert (one["best_of"], one["value"], one["n"]) == (1, 0.5, 2)
    assert two["value"] == pytest.approx(2 / 3, abs=1e-6)  # of 6 pairs 3 have the best, and 1 more the right one
    assert two["most"] == pytest.approx(5 / 6, abs=1e-6)
    assert four["value"] == four["most"] == 1.0
    with pytest.raises(UserError, match="no prompt has two responses"):
        judged_choice([(row, *both) for row, both in rows("one", group[-2:])])


def test_a_curve_ends_with_as_many_as_all_have_and_leaves_out_who_has_fewer():
    three = [(0.0, 0.0), (1.0, 1.0), (0.5, 0.0)]
    assert [one["best_of"] for one in best_of_curve([three, three * 2])] == [1, 2, 3]
    assert [(one["best_of"], one["n"]) for one in best_of_curve([three, three * 2], least=6)][-1] == (6, 1)
    assert best_of_curve([three], least=4) == [] == best_of_curve([])


def test_a_data_set_reports_it_over_the_prompts_whose_responses_all_have_a_reward():
    table = what_best_is_worth([[0, 0, 1], [1, 1, 1], [None, 1, 1], [1]])
    assert table == {"1": pytest.approx(2 / 3, abs=1e-6), "2": pytest.approx((2 / 3 + 1) / 2, abs=1e-6), "3": 1.0}
    assert what_best_is_worth([[None]]) == {} == what_best_is_worth([])


def test_the_verb_chooses_and_measures(tmp_path: Path, leyden_cli: Callable[..., Any]):
    responses, by_model, by_key = (tmp_path / name for name in ("r.jsonl", "m.jsonl", "k.jsonl"))
    responses.write_text("".join(json.dumps({"prompt": "p", "response": text}) + "\n" for text in "abc"))
    by_model.write_text("".join(json.dumps({"reward": reward}) + "\n" for reward in (0.2, 0.9, 0.4)))
    by_key.write_text("".join(json.dumps({"reward": reward}) + "\n" for reward in (0, 1, 0)))
    chosen = leyden_cli("best", responses, by_model)
    assert json.loads(chosen.out) == {"prompt": "p", "response": "b", "reward": 0.9, "of": 3}
    lines = [
        json.loads(line) for line in leyden_cli("best", responses, by_model, "--judged-by", by_key).out.splitlines()
    ]
    assert [(line["best_of"], line["value"]) for line in lines] == [(1, 0.333333), (2, 0.666667), (3, 1.0)]
