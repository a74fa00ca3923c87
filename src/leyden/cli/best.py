"""``leyden best``: of several responses to each prompt the best by reward (best-of-n), and how good that choice is."""

import json
from pathlib import Path
from typing import Annotated

import typer


def best(
    file: Annotated[Path, typer.Argument(help="Rows in jsonl: prompt, response, several of each prompt.")],
    rewards: Annotated[Path, typer.Argument(help="What `leyden reward` said of them: a line for each row.")],
    by: Annotated[
        str | None,
        typer.Option(
            help="The component of the rewards that chooses, in place of the reward: least, last, ...",
            show_default=False,
        ),
    ] = None,
    judged_by: Annotated[
        Path | None,
        typer.Option(
            help="Other rewards of the same rows. In place of the responses: how good the best of 1, 2, 4, ... is by "
            "these, a line for each number.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Choose of each prompt the response with the highest reward, as jsonl; or measure how good that choice is."""
    from leyden.align.rewards.best_of_n import best_responses, judged_choice
    from leyden.align.rewards.rows import read_rewarded_rows

    graded = read_rewarded_rows(file, rewards, by)
    if judged_by is None:
        for row in best_responses(graded):
            print(json.dumps(row, ensure_ascii=False))
        return
    judged = (other for _, other in read_rewarded_rows(file, judged_by))
    for record in judged_choice((row, one, other) for (row, one), other in zip(graded, judged, strict=True)):
        print(json.dumps(record))
