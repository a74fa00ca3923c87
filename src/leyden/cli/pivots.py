"""``leyden pivots``: preference pairs of single tokens that decide whether a response succeeds."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from leyden.cli.asked_model import Rules, Seconds
from leyden.cli.options import Device


def pivots(
    model: Annotated[str, typer.Argument(help="The policy: a run, a checkpoint, a directory or a hub id.")],
    files: Annotated[list[str], typer.Argument(metavar="PROMPTS...", help="Files of prompts, as of leyden sample.")],
    out: Annotated[Path, typer.Option(help="The folder that is written.")],
    reward: Annotated[
        Literal["math", "exact", "code", "ifeval", "rules"], typer.Option(help="By which responses are graded.")
    ],
    samples: Annotated[int, typer.Option(help="Completions by which a chance of success is estimated.")] = 16,
    max_tokens: Annotated[int, typer.Option(help="Of a response; a longer one is graded as it was cut.")] = 1024,
    temperature: Annotated[float, typer.Option(help="At which all is drawn.")] = 1.0,
    least_gap: Annotated[float, typer.Option(help="By how much a pivotal token changes the chance.")] = 0.2,
    lowest: Annotated[float, typer.Option(help="Prompts with a smaller chance are left out.")] = 0.2,
    highest: Annotated[float, typer.Option(help="Prompts with a greater chance are left out.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    rules: Rules = None,
    seconds: Seconds = 10.0,
    device: Device = None,
) -> None:
    """Find the tokens that decide whether responses succeed, and make preference pairs of them."""
    from leyden.align.prompts.rows import read_prompts
    from leyden.align.rewards.rows import RowSettings
    from leyden.align.sampling.pivots import PivotSettings, build_pivots
    from leyden.cli.asked_model import open_policy, read_rules_of, tell_rejects
    from leyden.core.log import say
    from leyden.data.documents import Reject

    settings = PivotSettings(samples, max_tokens, temperature, least_gap, lowest, highest, seed)
    rewards = RowSettings(reward, seconds, read_rules_of({reward}, rules))
    rejects: list[Reject] = []
    prompts = read_prompts(files, rejects)
    tell_rejects(rejects)
    _, policy = open_policy(model, device)
    report = build_pivots(prompts, policy, rewards, settings, out)
    fates = ", ".join(f"{count:,} {fate}" for fate, count in report["prompts"].items())
    say(
        f"{len(prompts):,} prompts: {fates}. {report['pivots']:,} pivotal tokens, {report['pairs']:,} pairs in "
        f"{out / 'pairs.jsonl'}, of {report['completions']:,} completions."
    )
