"""``leyden reward``: what is good about responses, one JSON line a row."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Kind = Literal["math", "agreement", "code", "ifeval", "rules", "judge", "model"]


def reward(
    file: Annotated[Path, typer.Argument(help="Rows in jsonl: prompt, response, and what the kind needs.")],
    kind: Annotated[Kind, typer.Option(help="What is measured; docs/alignment.md says what each kind needs of a row.")],
    seconds: Annotated[
        float, typer.Option(min=0.1, help="math, code: for one comparison, or one program's tests.")
    ] = 10.0,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Programs, or requests to the judge, at once.", show_default=False)
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option(help="rules: a TOML file of [[rule]] tables with name and pattern.", show_default=False),
    ] = None,
    rubric: Annotated[
        str, typer.Option(help="judge: helpfulness, harmlessness, truthfulness, or a text file.")
    ] = "helpfulness",
    endpoint: Annotated[
        str | None, typer.Option(help="judge: an OpenAI-compatible server, http://HOST:PORT/v1.", show_default=False)
    ] = None,
    model_name: Annotated[str, typer.Option(help="judge: what the server calls the model.", show_default=False)] = "",
    api_key_env: Annotated[
        str, typer.Option(help="judge: the environment variable that holds the key.", show_default=False)
    ] = "",
    model: Annotated[
        str | None,
        typer.Option(help="model: a reward model: a run, a checkpoint, a directory or a hub id.", show_default=False),
    ] = None,
    cache: Annotated[Path, typer.Option(help="judge: the folder where its answers are kept.")] = Path("reward-answers"),
    max_requests: Annotated[int, typer.Option(min=0, help="judge: the cap on answers that are not kept yet.")] = 1000,
    timeout: Annotated[float, typer.Option(min=0.1, help="judge: seconds without a byte of an answer.")] = 120.0,
    retries: Annotated[int, typer.Option(min=0, help="judge: how often a request that failed is sent again.")] = 5,
) -> None:
    """Grade responses: a line with reward, components and reason for every row; null where nothing could be told."""
    from leyden.align.rewards.judge import Judge, rubric_of
    from leyden.align.rewards.rows import RowSettings, grade_rows
    from leyden.align.rewards.rules import OWN_RULES, read_rules
    from leyden.core.errors import UserError
    from leyden.core.log import say

    settings: dict[str, Any] = {"kind": kind, "seconds": seconds, "cache": cache}
    if concurrency is not None:
        settings["concurrency"] = concurrency
    if kind == "rules":
        settings["rules"] = read_rules(rules or OWN_RULES)
    if kind == "judge":
        if endpoint is None:
            raise UserError("--kind judge asks a model: name its server with --endpoint URL and --model-name NAME.")
        from leyden.data.label.endpoint import Endpoint
        from leyden.data.label.language_model import ModelSettings

        asked = {"url": endpoint, "name": model_name, "api_key_env": api_key_env, "concurrency": concurrency or 8}
        served = Endpoint(ModelSettings.parse({**asked, "timeout_seconds": timeout, "retries": retries}, "--endpoint"))
        name, text = rubric_of(rubric)
        settings["judge"] = Judge(served, text, name, max_requests)
    if kind == "model":
        if model is None:
            raise UserError("--kind model grades by a reward model: name it with --model DIR.")
        from leyden.align.reward_models.scorer import RewardModel

        settings["model"] = RewardModel.find(model)
    known, missing, total = 0, 0, 0.0
    for record in grade_rows(file, RowSettings(**settings)):
        print(json.dumps({"reward": record.reward, "components": record.components, "reason": record.reason}))
        known, missing = known + (record.reward is not None), missing + (record.reward is None)
        total += record.reward or 0.0
    mean = f"; the mean reward is {total / known:.4f}" if known else ""
    say(f"{known + missing:,} rows, of which {missing:,} have no reward{mean}.")
