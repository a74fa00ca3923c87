"""Best-of-n: of several responses to a prompt the one with the highest reward, and how good that one is."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from leyden.core.errors import UserError
from leyden.evaluate.scores import mean_with_interval

Row = Mapping[str, Any]


def best_responses(rows: Iterable[tuple[Row, float | None]]) -> Iterator[dict[str, Any]]:
    """Of each prompt the response with the highest reward, as its row with ``reward`` and ``of``: of how many it is.

    Of equal rewards the first is taken. A prompt of which no response has a reward gives none. Prompts come in the
    order in which they are met.

    Args:
        rows: each with ``prompt`` (a text, or messages) and ``response``, and its reward; None: it has none.
    """
    for group in _by_prompt(rows):
        graded = [(row, reward) for row, reward in group if reward is not None]
        if graded:
            row, reward = max(graded, key=lambda one: one[1])
            yield {**{key: value for key, value in row.items() if key != "line"}, "reward": reward, "of": len(graded)}


def value_of_best(rewards: np.ndarray, values: np.ndarray, n: int) -> float:
    """The expected value of the best of ``n`` responses by reward, drawn without replacement from all of them.

    With the rewards in falling order, response i of N is the best of n drawn ones with probability
    C(N - i - 1, n - 1) / C(N, n). Of equal rewards each is as likely to be taken, so that each counts with the mean of
    their values. It is the mean over all subsets of n, without any being drawn (the estimator of pass@k, arXiv
    2107.03374, section 2.1, is the case of values 0 and 1 that are their own rewards).

    Args:
        rewards: [N] float64, by which the best is chosen.
        values: [N] float64, by which the choice is judged.
        n: from 1 to N.

    Returns:
        In float64.

    Raises:
        UserError: ``n`` is not from 1 to N.
    """
    total = len(rewards)
    if not 1 <= n <= total:
        raise UserError(f"the best of {n} responses cannot be chosen from {total}; give 1 to {total}.")
    _, level = np.unique(-rewards, return_inverse=True)
    shared = (np.bincount(level, values) / np.bincount(level))[level]
    order = np.argsort(level, kind="stable")
    chances = [math.comb(total - place - 1, n - 1) / math.comb(total, n) for place in range(total)]
    return float(np.dot(chances, shared[order]))


def best_of_curve(groups: Iterable[Sequence[tuple[float, float]]], *, least: int = 2) -> list[dict[str, Any]]:
    """How good the best of 1, 2, 4, ... responses by one reward is by another: one record for each number.

    A record has ``best_of`` (the number), the mean over prompts of :func:`value_of_best` (``value``) with ``stderr``,
    ``interval`` (95 %, over prompts) and ``n`` (prompts), and ``most``: the value if each choice were the best one.
    The last record is of as many responses as every prompt has.

    Args:
        groups: of each prompt its responses: of each the reward that chooses, and the one that judges.
        least: a prompt with fewer responses is left out, so that all records are over the same prompts; 1 or more.

    Returns:
        None of them, where no prompt is left.
    """
    kept = [np.array(group, np.float64).T for group in groups if len(group) >= least]
    fewest = min((len(chooses) for chooses, _ in kept), default=0)
    sizes = sorted({fewest, *(1 << power for power in range(fewest.bit_length()))}) if kept else []
    records = []
    for n in sizes:
        found = [value_of_best(chooses, judges, n) for chooses, judges in kept]
        most = [value_of_best(judges, judges, n) for _, judges in kept]
        records.append({"best_of": n, **mean_with_interval(found), "most": round(float(np.mean(most)), 6)})
    return records


def judged_choice(rows: Iterable[tuple[Row, float | None, float | None]]) -> list[dict[str, Any]]:
    """The :func:`best_of_curve` of the rows of a file.

    Args:
        rows: each with a ``prompt``, the reward that chooses and the one that judges. Responses of which one is None
            are left out, and prompts with fewer than two others.

    Raises:
        UserError: no prompt has two responses with both.
    """
    groups = [
        [(one, other) for _, (one, other) in group if one is not None and other is not None]
        for group in _by_prompt((row, (chooses, judges)) for row, chooses, judges in rows)
    ]
    if not (records := best_of_curve(groups)):
        raise UserError("no prompt has two responses with both rewards, so that none can be chosen.")
    return records


def _by_prompt(rows: Iterable[tuple[Row, Any]]) -> Iterator[Sequence[tuple[Row, Any]]]:
    groups: dict[str, list[tuple[Row, Any]]] = {}
    for row, rewards in rows:
        groups.setdefault(json.dumps(row.get("prompt", ""), sort_keys=True), []).append((row, rewards))
    yield from groups.values()
