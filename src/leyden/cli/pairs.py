"""``leyden pairs``: preference pairs from responses and their rewards."""

import json
from pathlib import Path
from typing import Annotated

import typer


def pairs(
    file: Annotated[Path, typer.Argument(help="Rows in jsonl: prompt, response, several of each prompt.")],
    rewards: Annotated[
        Path | None,
        typer.Argument(
            help="What `leyden reward` said of them: a line for each row. Left out: FILE holds them, as samples.jsonl.",
            show_default=False,
        ),
    ] = None,
    least_gap: Annotated[float, typer.Option(min=0.0, help="The rewards of a pair differ by this at least.")] = 0.0,
    shorter: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="The shortest right response is preferred to one so many times as long, or to a longer wrong one.",
            show_default=False,
        ),
    ] = None,
    least: Annotated[float, typer.Option(help="--shorter: a response with this reward is right.")] = 1.0,
) -> None:
    """Make preference pairs: of each prompt the responses with the highest and the lowest reward, as jsonl."""
    from leyden.align.preference.best_and_worst import best_and_worst, shortest_and_longer
    from leyden.align.rewards.rows import read_rewarded_rows
    from leyden.core.errors import UserError
    from leyden.core.log import say

    if shorter is not None and least_gap:
        raise UserError("--least-gap is of pairs by reward, and --shorter of pairs by length; give one of them.")
    rows = read_rewarded_rows(file, file if rewards is None else rewards)
    if shorter is None:
        made = best_and_worst(rows, least_gap=least_gap)
    else:
        made = shortest_and_longer(rows, least=least, factor=shorter)
    for pair in made.pairs:
        print(json.dumps(pair, ensure_ascii=False))
    say(f"{made}.")
