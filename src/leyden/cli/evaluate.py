"""``leyden eval``: measures how good a model is on tasks."""

import json
from contextlib import ExitStack
from pathlib import Path

from leyden.cli import evaluate_options as given
from leyden.cli.options import Device, counts_of, lengths_of


def evaluate(
    models: given.Models = None,
    task: given.Tasks = None,
    endpoint: given.Endpoint = None,
    model_name: given.ModelName = None,
    api_key_env: given.ApiKeyEnv = None,
    tokenizer: given.Tokenizer = None,
    lengths: given.Lengths = None,
    depths: given.Depths = None,
    samples: given.Samples = None,
    pairs: given.Pairs = None,
    limit: given.Limit = None,
    seed: given.Seed = 0,
    file: given.File = None,
    text: given.Text = None,
    subtasks: given.Subtasks = None,
    include_path: given.IncludePath = None,
    shots: given.Shots = None,
    chat: given.Chat = False,
    apart: given.Apart = False,
    cot: given.Cot = False,
    out: given.Out = None,
    compare: given.Compare = False,
    concurrency: given.Concurrency = 4,
    timeout: given.Timeout = 600.0,
    retries: given.Retries = 3,
    device: Device = None,
) -> None:
    """Measure a model: one JSON line a task. docs/evaluation.md explains every task and how it is scored."""
    if compare:
        _compare(models, out, task)
        return
    model = _model(models, endpoint, task)

    from leyden.core.device import find_device
    from leyden.core.log import say
    from leyden.evaluate import Options
    from leyden.evaluate import evaluate as measure
    from leyden.evaluate.opening import open_endpoint, open_model
    from leyden.evaluate.sources import EndpointSettings
    from leyden.evaluate.tasks import check_names

    check_names(task or [])
    options = Options(
        lengths=None if lengths is None else lengths_of(lengths),
        depths=depths,
        samples=samples,
        pairs=None if pairs is None else counts_of(pairs),
        limit=limit,
        seed=seed,
        file=file,
        text=tuple(text or ()),
        subtasks=None if subtasks is None else tuple(part.strip() for part in subtasks.split(",")),
        include_path=tuple(include_path or ()),
        shots=shots,
        chat=chat,
        apart=apart,
        think=cot,
    )
    with ExitStack() as stack:
        if model is not None:
            source, subject = open_model(model, find_device(device), options.text)
        else:
            settings = EndpointSettings(endpoint or "", model_name, api_key_env, concurrency, timeout, retries)
            source, subject = stack.enter_context(open_endpoint(settings, tokenizer, options.text))
        for line in measure(source, subject, task or [], options, out):
            print(json.dumps(line), flush=True)
    if out is not None:
        say(f"The page is {out / 'index.html'}.")


def _model(models: list[str] | None, endpoint: str | None, task: list[str] | None) -> str | None:
    """The one model; None where an endpoint is asked."""
    from leyden.core.errors import UserError

    if len(models or []) + (endpoint is not None) != 1:
        raise UserError("name one model to measure, or an endpoint with --endpoint URL.")
    if not task:
        raise UserError("name what to measure with --task, niah or bits_per_byte for one; docs/evaluation.md has all.")
    return models[0] if models else None


def _compare(directories: list[str] | None, out: Path | None, task: list[str] | None) -> None:
    from leyden.core.errors import UserError
    from leyden.evaluate.scores_page import write_scores_page

    if task or not directories:
        raise UserError("--compare draws a page of what was measured: name the folders of --out, and leave out --task.")
    if out is None:
        raise UserError("--compare needs --out DIR, where the page goes.")
    path = out if out.suffix == ".html" else out / "index.html"
    write_scores_page([Path(directory) for directory in directories], path)
    print(path)
