"""Tools that nobody here wrote, against ``leyden serve``; each runs where its command is installed.

``pip install 'lm-eval[api]'`` and ``pip install guidellm``, each in an environment of its own, and its ``bin`` on PATH.
"""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from leyden.bench.serve.http import ServerProcess, our_server
from leyden.checkpoint import save
from leyden.model import HybridLM
from leyden.tokenizer import Tokenizer

_TASK = """
task: jar
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def _needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


@pytest.fixture(scope="module")
def model(make_model: Callable[..., HybridLM]) -> HybridLM:
    return make_model()


@pytest.fixture(scope="module")
def directory(model: HybridLM, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("outside") / "model"
    save(model, tokenizer, directory)
    return directory


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[ServerProcess]:
    with our_server(str(directory), threads=1) as server:
        yield server


def _run(tool: str, *arguments: str, directory: Path) -> None:
    """Run a command that finds no network, nor anybody's settings."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(directory), "HOME": str(directory)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    ran = subprocess.run(
        [tool, *arguments],
        env=environment | offline,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]


@_needs("lm_eval")
def test_lm_eval_scores_as_the_model_does(
    server: ServerProcess, model: HybridLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    chance = random.Random(5)
    words = [
        "The",
        "lightning",
        "struck",
        "the",
        "old",
        "tower",
        "A",
        "jar",
        "keeps",
        "Grüße",
        "aus",
        "Leyden",
        "☂",
        "雷電",
    ]
    with (tmp_path / "documents.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(8):
            choices = [" ".join(chance.choices(words, k=3)) for _ in range(3)]
            question = " ".join(chance.choices(words, k=10))
            document = {"question": question, "choices": choices, "answer": chance.randrange(3)}
            file.write(json.dumps(document) + "\n")
    (tmp_path / "jar.yaml").write_text(_TASK.format(file=tmp_path / "documents.jsonl"), encoding="utf-8")
    given = f"model=bench,base_url={server.url}/v1/completions,tokenizer_backend=remote,num_concurrent=3,max_retries=1"
    arguments = ["--model", "local-completions", "--model_args", given, "--tasks", "jar", "--include_path", "."]
    _run("lm_eval", "run", *arguments, "--output_path", "out", "--log_samples", directory=tmp_path)

    (samples,) = tmp_path.glob("out/**/samples_jar_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 8
    right = 0
    for line in lines:
        scores = []
        for (found, greedy), asked in zip(line["filtered_resps"], line["arguments"].values(), strict=True):
            expected, best = _score(model, tokenizer, asked["arg_0"], asked["arg_1"])
            assert float(found) == pytest.approx(expected, abs=1e-3)
            assert greedy == str(best)
            scores.append(expected)
        right += scores.index(max(scores)) == line["doc"]["answer"]
    (results,) = tmp_path.glob("out/**/results_*.json")
    assert json.loads(results.read_text())["results"]["jar"]["acc,none"] == pytest.approx(right / 8)


def _score(model: HybridLM, tokenizer: Tokenizer, context: str, continuation: str) -> tuple[float, bool]:
    """The log-probability of ``continuation``, and whether it is what greedy decoding gives."""
    whole, num_context = tokenizer.encode(context + continuation), len(tokenizer.encode(context))
    with torch.inference_mode():
        logprobs = model(torch.tensor([whole]))[0].log_softmax(-1)[num_context - 1 : -1]
    wanted = torch.tensor(whole[num_context:])
    score = logprobs.gather(1, wanted[:, None]).sum().item()
    return score, bool((logprobs.argmax(-1) == wanted).all())


@_needs("guidellm")
def test_guidellm_finds_no_error(server: ServerProcess, directory: Path, tmp_path: Path) -> None:
    target = f"kind=openai_http,target={server.url},model=bench,request_format=/v1/completions"
    data = "kind=synthetic_text,prompt_tokens=60,output_tokens=12"
    tokenizer = f"kind=hf_auto,model={directory}"
    arguments = ["--backend", target, "--data", data, "--tokenizer", tokenizer, "--disable-progress"]
    load = ["--profile", "kind=concurrent,streams=6", "--constraint", "kind=max_requests,count=24"]
    _run("guidellm", "run", *arguments, *load, "--output", "kind=json,path=report.json", directory=tmp_path)
    (benchmark,) = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["incomplete"], totals["errored"]) == (24, 0, 0)
