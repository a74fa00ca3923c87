"""``leyden pairs``: preference pairs from responses and their rewards."""

import json
from pathlib import Path
from typing import Annotated

import typer


def pairs(
    file: Annotated[Path, typer.Argument(help="Rows in jsonl: prompt, response, several of each prompt.")],
    rewards: Annotated[Path, typer.Argument(help="What `leyden reward` said of them: a line for each row.")],
    least_gap: Annotated[float, typer.Option(min=0.0, help="The rewards of a pair differ by this at least.")] = 0.0,
) -> None:
    """Make preference pairs: of each prompt the responses with the highest and the lowest reward, as jsonl."""
    from leyden.align.preference.best_and_worst import best_and_worst
    from leyden.align.rewards.rows import read_rewarded_rows
    from leyden.core.log import say

    made = best_and_worst(read_rewarded_rows(file, rewards), least_gap=least_gap)
    for pair in made.pairs:
        print(json.dumps(pair, ensure_ascii=False))
    say(f"{made}.")
