"""Options of verbs that ask a model, local or behind an endpoint, and what they open."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from leyden.align.rewards.judge import Judge
    from leyden.align.rewards.rules import Rule
    from leyden.align.sampling.choice import Embed
    from leyden.align.sampling.grading import Grading
    from leyden.align.sampling.pivots import Policy
    from leyden.data.documents import Reject
    from leyden.data.label.language_model import LanguageModel
    from leyden.recipes.local_model import LocalModel

ENDPOINT = typer.Option(help="In place of MODEL: an OpenAI-compatible server, http://HOST:PORT/v1.", show_default=False)
Endpoint = Annotated[str | None, ENDPOINT]
ModelName = Annotated[str, typer.Option(help="What the endpoint calls the model.", show_default=False)]
ApiKeyEnv = Annotated[
    str, typer.Option(help="The environment variable that holds the endpoint's key.", show_default=False)
]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests to endpoints, or programs, at once.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Endpoints: seconds without a byte of an answer.")]
Retries = Annotated[int, typer.Option(min=0, help="Endpoints: how often a request that failed is sent again.")]
JudgeEndpoint = Annotated[
    str | None, typer.Option(help="judge, truthfulness: the judge's server, http://HOST:PORT/v1.", show_default=False)
]
JudgeName = Annotated[str, typer.Option(help="What that server calls the judge.", show_default=False)]
JudgeKeyEnv = Annotated[
    str, typer.Option(help="The environment variable that holds the judge's key.", show_default=False)
]
Rubric = Annotated[str, typer.Option(help="judge: helpfulness, harmlessness, truthfulness, or a text file.")]
MaxRequests = Annotated[int, typer.Option(min=0, help="The cap on answers of the judge that are not kept yet.")]
Rules = Annotated[Path | None, typer.Option(help="rules: a TOML file of [[rule]] tables.", show_default=False)]
RewardModelName = Annotated[
    str | None,
    typer.Option(help="model: the reward model, a run, a checkpoint, a directory or a hub id.", show_default=False),
]
ProcessModelName = Annotated[
    str | None, typer.Option(help="process: the process reward model, named likewise.", show_default=False)
]
Seconds = Annotated[float, typer.Option(min=0.1, help="math, code: for one comparison, or one program's tests.")]


def tell_rejects(rejects: "list[Reject]") -> None:
    """Log what was set aside of files of prompts: how much by reason, and the first of each."""
    from leyden.core.log import logger

    for reason in dict.fromkeys(reject.reason for reject in rejects):
        mine = [reject for reject in rejects if reject.reason == reason]
        logger(__name__).warning("set aside: %d rows, %s; the first: %s", len(mine), reason, mine[0])


def open_endpoint(
    url: str, name: str, api_key_env: str, *, concurrency: int, timeout: float, retries: int, option: str
) -> "LanguageModel":
    """A model behind an endpoint; ``option`` is what a user gave its address with."""
    from leyden.data.label.endpoint import Endpoint
    from leyden.data.label.language_model import ModelSettings

    asked = {"url": url, "name": name, "api_key_env": api_key_env, "concurrency": concurrency}
    return Endpoint(ModelSettings.parse({**asked, "timeout_seconds": timeout, "retries": retries}, option))


def open_model(
    name: str | None,
    url: str | None,
    model_name: str,
    api_key_env: str,
    device: str | None,
    *,
    concurrency: int,
    timeout: float,
    retries: int,
) -> "LanguageModel":
    """The model of this machine, or the one behind an endpoint.

    Raises:
        UserError: both are named, or there is no such model.
    """
    from leyden.core.device import find_device
    from leyden.core.errors import UserError
    from leyden.recipes.local_model import LocalModel

    if url is not None:
        if name is not None:
            raise UserError("give either a model of this machine or --endpoint, and not both.")
        patience = {"concurrency": concurrency, "timeout": timeout, "retries": retries}
        return open_endpoint(url, model_name, api_key_env, **patience, option="--endpoint")
    assert name is not None, "one of both is given"
    return LocalModel(name, find_device(device))


def open_judge(
    url: str | None,
    name: str,
    api_key_env: str,
    rubric: str,
    most_requests: int,
    *,
    concurrency: int,
    timeout: float,
    retries: int,
) -> "Judge | None":
    """The judge by a rubric; None where no endpoint is named."""
    from leyden.align.rewards.judge import Judge, rubric_of

    if url is None:
        return None
    patience = {"concurrency": concurrency, "timeout": timeout, "retries": retries}
    model = open_endpoint(url, name, api_key_env, **patience, option="the judge's endpoint")
    called, text = rubric_of(rubric)
    return Judge(model, text, called, most_requests)


def open_embeddings(name: str | None, model: "LanguageModel", device: str | None) -> "Embed":
    """What makes embeddings: the model of a name, or the one that is asked, if it is of this machine.

    Raises:
        UserError: it is not, and none is named.
    """
    from leyden.align.sampling.embeddings import mean_hidden
    from leyden.checkpoint import load
    from leyden.core.device import find_device
    from leyden.core.errors import UserError
    from leyden.recipes.local_model import LocalModel

    if name is None and isinstance(model, LocalModel):
        return lambda texts: mean_hidden(model.model, model.tokenizer, texts)
    if name is None:
        raise UserError("--similarity needs a model of this machine that makes embeddings: --embeddings MODEL.")
    opened, tokenizer = load(name, dtype="auto", device=find_device(device))
    if tokenizer is None:
        raise UserError(f"{name} has no tokenizer, so that it cannot make embeddings.")
    return lambda texts: mean_hidden(opened, tokenizer, texts)


def open_policy(name: str, device: str | None) -> "tuple[LocalModel, Policy]":
    """A model of this machine, as what is asked and as what is searched."""
    from leyden.align.sampling.pivots import Policy
    from leyden.core.device import find_device
    from leyden.recipes.local_model import LocalModel

    opened = LocalModel(name, find_device(device))
    return opened, Policy(opened.engine, opened.tokenizer, opened.identity)


def read_rules_of(kinds: Collection[str], rules: Path | None) -> "tuple[Rule, ...]":
    """The rules of a file, or our own; none where no reward of these kinds goes by rules."""
    from leyden.align.rewards.rules import OWN_RULES, read_rules

    return read_rules(rules or OWN_RULES) if "rules" in kinds else ()


def open_grading(
    rewards: list[str],
    *,
    rules: Path | None,
    judge: "Judge | None",
    cache: Path,
    seconds: float,
    concurrency: int,
    reward_model: str | None,
    process_model: str | None,
) -> "Grading":
    """The rewards that were named, with what they need.

    Raises:
        UserError: there is no such kind, or one needs a judge or a reward model that is not named or cannot grade.
    """
    from leyden.align.process_rewards.scorer import LearnedGrader
    from leyden.align.rewards.rows import RowSettings
    from leyden.align.sampling.grading import LEARNED, Grading, levels_of
    from leyden.core.errors import UserError

    levels = levels_of(rewards)
    kinds = {level.component for level in levels}
    if judge is None and kinds & {"judge", "truthfulness"}:
        raise UserError(
            f"--reward {'/'.join(sorted(kinds & {'judge', 'truthfulness'}))} asks a judge: name its server with "
            "--judge-endpoint URL and --judge-name NAME."
        )
    models = {}
    for kind, name, option in zip(
        LEARNED, (reward_model, process_model), ("--reward-model", "--process-model"), strict=True
    ):
        if (kind in kinds) != (name is not None):
            raise UserError(f"--reward {kind} and {option} DIR go together; give both, or neither.")
        if name is not None:
            models[kind] = LearnedGrader(kind, name)
    read = read_rules_of(kinds, rules)
    return Grading(levels, RowSettings(levels[0].component, seconds, read, judge, cache, concurrency), models)
