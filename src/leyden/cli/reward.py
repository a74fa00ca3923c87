"""``leyden reward``: what is good about responses, one JSON line a row."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Kind = Literal["math", "exact", "agreement", "code", "ifeval", "rules", "judge", "truthfulness", "model", "process"]


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
        str | None,
        typer.Option(help="judge, truthfulness: an OpenAI-compatible server, http://HOST:PORT/v1.", show_default=False),
    ] = None,
    model_name: Annotated[
        str, typer.Option(help="judge, truthfulness: what the server calls the model.", show_default=False)
    ] = "",
    api_key_env: Annotated[
        str, typer.Option(help="judge, truthfulness: the environment variable that holds the key.", show_default=False)
    ] = "",
    cache: Annotated[Path, typer.Option(help="judge, truthfulness: the folder where its answers are kept.")] = Path(
        "reward-answers"
    ),
    max_requests: Annotated[
        int, typer.Option(min=0, help="judge, truthfulness: the cap on answers that are not kept yet.")
    ] = 1000,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="judge, truthfulness: seconds without a byte of an answer.")
    ] = 120.0,
    retries: Annotated[
        int, typer.Option(min=0, help="judge, truthfulness: how often a request that failed is sent again.")
    ] = 5,
    model: Annotated[
        str | None,
        typer.Option(
            help="model, process: a reward model: a run, a checkpoint, a directory or a hub id.", show_default=False
        ),
    ] = None,
) -> None:
    """Grade responses: a line with reward, components and reason for every row; null where nothing could be told."""
    from leyden.align.rewards.rows import RowSettings, grade_rows
    from leyden.align.rewards.rules import OWN_RULES, read_rules
    from leyden.cli.asked_model import open_judge
    from leyden.core.errors import UserError
    from leyden.core.log import say

    settings: dict[str, Any] = {"kind": kind, "seconds": seconds, "cache": cache}
    if concurrency is not None:
        settings["concurrency"] = concurrency
    if kind == "rules":
        settings["rules"] = read_rules(rules or OWN_RULES)
    if kind in ("judge", "truthfulness"):
        if endpoint is None:
            raise UserError(f"--kind {kind} asks a model: name its server with --endpoint URL and --model-name NAME.")
        patience = {"concurrency": concurrency or 8, "timeout": timeout, "retries": retries}
        settings["judge"] = open_judge(endpoint, model_name, api_key_env, rubric, max_requests, **patience)
    if kind in ("model", "process"):
        if model is None:
            raise UserError(f"--kind {kind} grades by a reward model: name it with --model DIR.")
        from leyden.align.process_rewards.scorer import LearnedGrader

        settings["model"] = LearnedGrader(kind, model)
    known, missing, total = 0, 0, 0.0
    for record in grade_rows(file, RowSettings(**settings)):
        print(json.dumps({"reward": record.reward, "components": record.components, "reason": record.reason}))
        known, missing = known + (record.reward is not None), missing + (record.reward is None)
        total += record.reward or 0.0
    mean = f"; the mean reward is {total / known:.4f}" if known else ""
    say(f"{known + missing:,} rows, of which {missing:,} have no reward{mean}.")
