"""``leyden steps``: problems to solutions with a label on each step, for process reward models."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from leyden.cli.asked_model import (
    Concurrency,
    JudgeEndpoint,
    JudgeKeyEnv,
    JudgeName,
    MaxRequests,
    Retries,
    Rules,
    Seconds,
    Timeout,
)
from leyden.cli.options import Device


def steps(
    model: Annotated[str, typer.Argument(help="Draws and completes solutions: a run, a checkpoint, a directory, ...")],
    files: Annotated[
        list[str],
        typer.Argument(metavar="PROBLEMS...", help="Files of prompts; a row with response or steps is a solution."),
    ],
    out: Annotated[Path, typer.Option(help="The folder that is written.")],
    reward: Annotated[
        Literal["math", "exact", "code", "ifeval", "rules"], typer.Option(help="What says that a solution is right.")
    ],
    solutions: Annotated[int, typer.Option(help="Solutions that are drawn of each prompt that has none.")] = 4,
    samples: Annotated[int, typer.Option(help="Completions behind each step; 0: the judge alone gives labels.")] = 8,
    max_tokens: Annotated[int, typer.Option(help="Of a solution.")] = 1024,
    temperature: Annotated[float, typer.Option(help="At which all is drawn.")] = 1.0,
    least_chance: Annotated[float, typer.Option(help="A step is right if a larger share of its completions is.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    judge_endpoint: JudgeEndpoint = None,
    judge_name: JudgeName = "",
    judge_key_env: JudgeKeyEnv = "",
    max_requests: MaxRequests = 1000,
    rules: Rules = None,
    seconds: Seconds = 10.0,
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    retries: Retries = 5,
    device: Device = None,
) -> None:
    """Label the steps of solutions: by completions behind each, by a judge, or where both agree."""
    from leyden.align.process_rewards.build import SOLUTIONS, StepSettings, build_steps
    from leyden.align.process_rewards.completing import CompletionSettings
    from leyden.align.prompts.rows import read_prompts
    from leyden.align.rewards.rows import RowSettings
    from leyden.align.sampling.asking import Drawing
    from leyden.cli.asked_model import open_judge, open_policy, read_rules_of, tell_rejects
    from leyden.core.log import say
    from leyden.data.documents import Reject

    patience = {"concurrency": concurrency, "timeout": timeout, "retries": retries}
    judge = open_judge(judge_endpoint, judge_name, judge_key_env, "truthfulness", max_requests, **patience)
    completions = CompletionSettings(samples, max_tokens, temperature, least_chance, seed) if samples else None
    settings = StepSettings(Drawing((temperature,), solutions, max_tokens, seed), completions, judge)
    read = read_rules_of({reward}, rules)
    rejects: list[Reject] = []
    prompts = read_prompts(files, rejects)
    tell_rejects(rejects)
    opened, policy = open_policy(model, device)
    report = build_steps(prompts, opened, policy, RowSettings(reward, seconds, read), settings, out)
    left_out = ", ".join(f"{count:,} {why}" for why, count in report["left_out"].items())
    labels = report["labels"]
    say(
        f"{report['solutions']:,} solutions, of which {report['kept']:,} are kept ({left_out or 'none'} left out). Of "
        f"{report['steps']:,} steps {labels['right']:,} are right and {labels['wrong']:,} wrong; "
        f"{labels['none']:,} stand behind a wrong one. {out / SOLUTIONS} is the data set."
    )
