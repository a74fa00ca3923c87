"""``leyden sample``: prompts to a data set of the best responses (rejection sampling), or to a teacher's."""

from pathlib import Path
from typing import Annotated, Any, Literal

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

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="[MODEL] PROMPTS...",
        help="A model, unless there is --endpoint; and files of prompts.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option(help="The folder that is written.")]
Rewards = Annotated[
    list[str],
    typer.Option(help="KIND or KIND:LEAST, the most important first: math, agreement, code, ifeval, rules, ..."),
]
Temperatures = Annotated[
    list[float] | None, typer.Option(help="May be given several times; 0.7 and 1.0.", show_default=False)
]
Samples = Annotated[int, typer.Option(help="Responses of a prompt at each temperature.")]
MaxTokens = Annotated[int, typer.Option(help="Of a response; one that does not end by then is not kept.")]
Best = Annotated[int, typer.Option(help="Responses of a prompt that are kept, at most.")]
Least = Annotated[
    float | None,
    typer.Option(
        help="Their rewards are this at least; left out: 1, or what the levels above a learned reward make.",
        show_default=False,
    ),
]
NgramWords = Annotated[int, typer.Option(help="Words of an n-gram.")]
NgramShare = Annotated[
    float, typer.Option(help="Left out: a response of whose n-grams better ones of its prompt have this share.")
]
Prefer = Annotated[
    Literal["reward", "short"],
    typer.Option(help="Kept first of those with enough reward: the best by reward, or the shortest."),
]
Similarity = Annotated[
    float | None,
    typer.Option(help="Left out: a response whose embedding has this cosine with a better one.", show_default=False),
]
Embeddings = Annotated[
    str | None, typer.Option(help="The model of the embeddings; MODEL itself if left out.", show_default=False)
]
Seed = Annotated[int, typer.Option(help="Of all that is drawn.")]


def sample(
    names: Names,
    out: Out,
    reward: Rewards,
    temperature: Temperatures = None,
    samples: Samples = 4,
    max_tokens: MaxTokens = 1024,
    best: Best = 1,
    least: Least = None,
    ngram_words: NgramWords = 4,
    ngram_share: NgramShare = 0.8,
    prefer: Prefer = "reward",
    similarity: Similarity = None,
    embeddings: Embeddings = None,
    seed: Seed = 0,
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
    """Draw responses, grade them, and keep the best of each prompt as chats that fine-tuning reads."""
    from leyden.align.prompts.rows import read_prompts
    from leyden.align.sampling.asking import Drawing
    from leyden.align.sampling.build import ANSWERS, DATA, SampleSettings, build_data_set
    from leyden.align.sampling.choice import ChoiceSettings
    from leyden.cli.asked_model import open_embeddings, open_grading, open_judge, open_model, tell_rejects
    from leyden.core.errors import UserError

    patience = {"concurrency": concurrency, "timeout": timeout, "retries": retries}
    drawing = Drawing(tuple(temperature or (0.7, 1.0)), samples, max_tokens, seed)
    judge = open_judge(judge_endpoint, judge_name, judge_key_env, rubric, max_requests, **patience)
    grading = open_grading(
        reward,
        rules=rules,
        judge=judge,
        cache=out / f"judge-{ANSWERS}",
        seconds=seconds,
        concurrency=concurrency,
        reward_model=reward_model,
        process_model=process_model,
    )
    enough = grading.enough if least is None else least
    choice = ChoiceSettings(best, enough, ngram_words, ngram_share, similarity, prefer)
    paths = names if endpoint is not None else names[1:]
    if not paths:
        raise UserError("name a model and a file of prompts, or --endpoint URL and a file of prompts.")
    rejects: list[Any] = []
    prompts = read_prompts(paths, rejects)
    tell_rejects(rejects)
    model = open_model(None if endpoint else names[0], endpoint, model_name, api_key_env, device, **patience)
    embed = None if similarity is None else open_embeddings(embeddings, model, device)
    report = build_data_set(prompts, model, SampleSettings(drawing, grading, choice), out, embed)
    _tell(report, out / DATA)


def _tell(report: dict[str, Any], data: Path) -> None:
    from leyden.core.log import say

    fates = ", ".join(f"{count:,} {fate}" for fate, count in report["fates"].items())
    say(f"{report['responses']:,} responses to {report['prompts']:,} prompts: {fates}.")
    best = ", ".join(f"{n}: {value:.3f}" for n, value in report["best_of"].items()) or "unknown"
    say(
        f"{report['prompts_without']:,} prompts have none that is kept; of {report['prompts_all_alike']:,} all rewards "
        f"are equal. Reward of the best of n: {best}. "
        f"{report['pairs']:,} pairs. {data} is the data set; samples.jsonl has every response, report.json the counts."
    )
