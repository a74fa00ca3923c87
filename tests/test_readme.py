"""Every command and every Python example of README.md runs, long ones in a short form; every link leads somewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from leyden.train import run as train_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TOPIC = "asyncio"

SMALL = (
    *("stage.0.steps=1", "stage.0.seq_len=512", "stage.0.batch_tokens=1024"),
    *("evaluate.held_out_tokens=1024", "evaluate.sample_tokens=4"),
)
# What stands for a command that would take minutes; the rest of the command stays as it is written.
SHORT: dict[str, list[str]] = {
    "quickstart": ["--minutes", "0.01"],
    "run": [word for setting in SMALL for word in ("--set", setting)],
    "generate": ["--max-tokens", "48"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    return [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, leyden_cli: Callable[..., Any], empty_plots: None) -> Path:
    """A folder in which the README's reader stands: some text, recipes, and the quickstart's run on that text, which
    is the run of ``make quickstart`` as well."""
    folder = tmp_path_factory.mktemp("readme")
    # Enough for the recipe's vocabulary, and a small part of what the quickstart reads by default.
    shutil.copytree(Path(sysconfig.get_path("stdlib")) / TOPIC, folder / "notes" / TOPIC)
    (folder / "new.md").write_text("# A letter\n\nDear reader,\nthis is new to the model.\n" * 20)
    for name, recipe in zip(("mine.toml", "corpus.toml"), blocks("toml"), strict=True):
        (folder / name).write_text(recipe, encoding="utf-8")
    (quickstart,) = (
        arguments for program, *arguments in commands() if [program, arguments[0]] == ["leyden", "quickstart"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shorten(patch)
        run_leyden(quickstart, leyden_cli)
    run = folder / quickstart[quickstart.index("--dir") + 1]
    shutil.copytree(run, folder / "runs" / "quickstart")
    return folder


def shorten(patch: pytest.MonkeyPatch) -> None:
    """One step is timed."""
    patch.setattr(train_run, "_WARM_STEPS", 0)
    patch.setattr(train_run, "_TIMED_STEPS", 1)


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[str]:
    """The address at which ``leyden serve`` serves the reader's model."""
    command = [sys.executable, "-m", "leyden", "serve", "runs/quickstart/final", "--port", "0"]
    with subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = next(found for line in server.stderr if (found := re.search(r"http://[\d.]+:\d+", line)))
            yield found[0]
        finally:
            server.terminate()
            server.communicate(timeout=60)
    assert server.returncode == 0


def run_leyden(arguments: list[str], leyden_cli: Callable[..., Any]) -> None:
    outcome = leyden_cli(*arguments, *SHORT.get(arguments[0], []), stdin="hello\n/exit\n")
    assert outcome.code == 0, outcome.err
    if arguments[0] in ("info", "generate", "chat", "eval", "convert"):
        assert outcome.out.strip()


def check_make(arguments: list[str]) -> None:
    """The target exists, and does what the command line does, whose verbs are run here."""
    (target,) = arguments
    plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    does = {
        "quickstart": "-m leyden quickstart",
        "test": '-m pytest -m "not slow and not gpu"',
        "test-all": '-m pytest -m "not gpu"',
        "check": "lint-imports",
        "bench": "-m leyden bench cpu",
    }
    assert does[target] in plan


def check_pip(arguments: list[str]) -> None:
    """An install of the checkout itself, with extras that it has."""
    install, editable, requirement = arguments
    assert (install, editable) == ("install", "-e")
    extras = re.fullmatch(r"\.(?:\[([\w,-]+)\])?", requirement)
    assert extras is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set((extras[1] or "hub").split(",")) <= set(project["optional-dependencies"])


def run_torchrun(arguments: list[str]) -> None:
    """In processes of its own, each on one thread."""
    launch, leyden = [sys.executable, "-m", "torch.distributed.run"], arguments.index("leyden")
    short = SHORT[arguments[leyden + 1]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *arguments, *short], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _long(command: list[str]) -> bool:
    """Whether a command takes most of a minute: four processes, or a search through all plans of 2,048 GPUs."""
    return command[0] == "torchrun" or command[:2] == ["leyden", "plan"]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.slow if _long(command) else (), id=" ".join(command))
        for command in commands()
    ],
)
def test_the_command_runs(
    command: list[str],
    place: Path,
    leyden_cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(place)
    program, *arguments = command
    shorten(monkeypatch)
    if program == "leyden" and arguments[0] == "serve":
        assert arguments[1:] == ["runs/quickstart/final"]
        assert httpx.get(f"{request.getfixturevalue('served')}/ready").status_code == 200
    elif program == "leyden":
        run_leyden(arguments, leyden_cli)
    elif program == "make":
        check_make(arguments)
    elif program == "pip":
        check_pip(arguments)
    elif program == "torchrun":
        run_torchrun(arguments)
    else:
        pytest.fail(f"README.md has a command that no test knows: {shlex.join(command)}")


@pytest.mark.parametrize("example", blocks("python"), ids=lambda text: text.splitlines()[-1])
def test_the_example_runs(
    example: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(place)
    if "http://127.0.0.1:8000" in example:
        example = example.replace("http://127.0.0.1:8000", request.getfixturevalue("served"))
    exec(compile(example, "README.md", "exec"), {})
    assert "print(" not in example or capsys.readouterr().out


def test_commands_named_in_a_sentence_are_known() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)`", README)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if target.startswith("https://"):
            continue
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
