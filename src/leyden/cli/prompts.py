"""``leyden prompts``: sets of prompts, tagged, without duplicates and contamination, with a weight by difficulty."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from leyden.cli.asked_model import (
    ApiKeyEnv,
    Concurrency,
    Endpoint,
    JudgeEndpoint,
    JudgeKeyEnv,
    JudgeName,
    MaxRequests,
    ModelName,
    ProcessModelName,
    Retries,
    RewardModelName,
    Rubric,
    Rules,
    Seconds,
    Timeout,
)
from leyden.cli.options import Device


def prompts(
    files: Annotated[list[str], typer.Argument(help="Files and folders of prompts, or hf://OWNER/NAME.")],
    out: Annotated[Path, typer.Option(help="The folder that is written.")],
    against: Annotated[
        list[str] | None, typer.Option(help="An evaluation set, which no prompt may be of.", show_default=False)
    ] = None,
    similarity: Annotated[float, typer.Option(help="From which two prompts are near-duplicates; 1: none are.")] = 0.8,
    ngram_words: Annotated[int, typer.Option(min=1, help="Words of an n-gram.")] = 13,
    ngram_share: Annotated[
        float, typer.Option(help="Dropped: a prompt of whose n-grams this share stands in prompts before it.")
    ] = 0.8,
    overlap: Annotated[
        float, typer.Option(min=0, max=1, help="Dropped: one with this share of an evaluation item; 0: one n-gram.")
    ] = 0.0,
    held_out: Annotated[float, typer.Option(help="The share of prompts that is not trained on.")] = 0.0,
    model: Annotated[
        str | None, typer.Option(help="The policy, whose pass rates are measured.", show_default=False)
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="KIND or KIND:LEAST, by which its responses are graded: math, code, ...", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(help="Responses of a prompt.")] = 8,
    temperature: Annotated[float, typer.Option(help="They are drawn at.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Of a response; a longer one is graded as it was cut.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    endpoint: Endpoint = None,
    model_name: ModelName = "",
    api_key_env: ApiKeyEnv = "",
    judge_endpoint: JudgeEndpoint = None,
    judge_name: JudgeName = "",
    judge_key_env: JudgeKeyEnv = "",
    rubric: Rubric = "helpfulness",
    max_requests: MaxRequests = 1000,
    rules: Rules = None,
    reward_model: RewardModelName = None,
    process_model: ProcessModelName = None,
    seconds: Seconds = 10.0,
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    retries: Retries = 5,
    device: Device = None,
) -> None:
    """Make a set of prompts to train on: without duplicates and evaluation items, tagged, weighed by difficulty."""
    from leyden.align.prompts.build import TRAIN, PromptSettings, build_prompts
    from leyden.align.prompts.cleaning import CleaningSettings
    from leyden.align.prompts.difficulty import pass_rates
    from leyden.align.sampling.asking import Drawing
    from leyden.cli.asked_model import open_grading, open_judge, open_model
    from leyden.core.errors import UserError

    cleaning = CleaningSettings(similarity, ngram_words, ngram_share, overlap)
    settings = PromptSettings(tuple(files), tuple(against or ()), cleaning, held_out)
    asks, measure = model is not None or endpoint is not None, None
    if asks != bool(reward):
        raise UserError(
            "difficulty is the pass rate of a policy by a reward: give --model (or --endpoint) and --reward KIND, or "
            "none of them, and none is measured."
        )
    if reward:
        patience = {"concurrency": concurrency, "timeout": timeout, "retries": retries}
        drawing = Drawing((temperature,), samples, max_tokens, seed)
        judge = open_judge(judge_endpoint, judge_name, judge_key_env, rubric, max_requests, **patience)
        grading = open_grading(
            reward,
            rules=rules,
            judge=judge,
            cache=out / "judge-answers",
            seconds=seconds,
            concurrency=concurrency,
            reward_model=reward_model,
            process_model=process_model,
        )
        policy = open_model(model, endpoint, model_name, api_key_env, device, **patience)
        answers = out / "answers"
        measure = partial(pass_rates, model=policy, drawing=drawing, grading=grading, answers=answers)
    report = build_prompts(settings, out, measure)
    _tell(report, out / TRAIN)


def _tell(report: dict[str, Any], train: Path) -> None:
    from leyden.core.log import say

    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items()) or "none"
    aside = ", ".join(f"{count:,} {reason}" for reason, count in report["set_aside"].items()) or "none"
    say(f"{report['prompts']:,} prompts; dropped: {dropped}; rows set aside: {aside}.")
    for tag, counts in report["tags"].items():
        say(f"{tag}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}.")
    for name, found in report["contamination"].items():
        say(f"contaminated by {name}: {found['prompts']:,} prompts ({100 * found['share']:.2f} %), dropped.")
    if report["unmeasured"]:
        say(f"{report['unmeasured']:,} prompts could not be measured, and have weight 1.")
    say(f"{report['trained_on']:,} to train on in {train}, {report['held_out']:,} held out; report.json has all.")
