"""Tasksets of the package verifiers as environments; without it, what the user is told."""

import sys
import textwrap
from pathlib import Path

import pytest

from leyden.align.rollouts.environment import open_environment
from leyden.align.rollouts.settings import RolloutSettings
from leyden.align.rollouts.verifiers_taskset import VerifiersTaskset
from leyden.core.errors import UserError

TASKSET = """
import verifiers.v1 as vf

__all__ = ["Sums"]


class SumData(vf.TaskData):
    answer: str


class Sum(vf.Task[SumData, vf.State, vf.TaskConfig]):
    TOOLS = []

    @vf.reward(weight=0.75)
    async def right(self, task, trace):
        return float(trace.last_reply == task.answer)

    @vf.reward(weight=0.25)
    async def short(self, trace):
        return float("nan") if trace.last_reply == "nan" else float(len(trace.last_reply) < 4)

    @vf.metric
    async def messages(self, trace):
        return float(len(trace.messages))


class Sums(vf.Taskset[Sum, vf.TasksetConfig]):
    def load(self):
        yield Sum(SumData(prompt="What is 2 + 2?", answer="4"))
        yield Sum(SumData(prompt="What is 3 + 4?", answer="7", system_prompt="Be short."))
        yield Sum(SumData(answer="8"))
"""


@pytest.fixture
def taskset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a module with a taskset, of which a test may change a line."""
    pytest.importorskip("verifiers.v1")
    old, new = getattr(request, "param", ("", ""))
    name = f"sums_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(TASKSET).replace(old, new) if old else TASKSET)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_rows_and_rewards_are_those_of_the_tasks(taskset: str) -> None:
    environment = open_environment(RolloutSettings(environment=f"verifiers:{taskset}"))
    assert isinstance(environment, VerifiersTaskset)
    first, second, third = environment.prompts()
    assert [message["role"] for message in second["prompt"]] == ["system", "user"]
    assert first["task"]["answer"] == "4" and third["prompt"] is None
    right = environment.score(second, "7")
    wrong = environment.score(second, "surely 8")
    none = environment.score(first, "nan")
    assert (right.reward, right.components) == (1.0, {"right": 1.0, "short": 1.0, "messages": 3.0})
    assert (wrong.reward, wrong.components["right"]) == (0.0, 0.0)
    assert none.reward is None and "no finite number" in none.reason


TOOLSETS = "    @classmethod\n    def toolsets(cls, config):\n        return [object()]"
REFUSED = {
    "never ends": ("    def load(self):", "    INFINITE = True\n\n    def load(self):"),
    "container": ("    TOOLS = []", "    NEEDS_CONTAINER = True"),
    "right, that reads the runtime": ("right(self, task, trace)", "right(self, task, trace, runtime)"),
    "tools": ("    TOOLS = []", TOOLSETS),
    "exports no Taskset": ('__all__ = ["Sums"]', "__all__ = []"),
}
"""What is told, and the line of the taskset that is changed for it."""


@pytest.mark.parametrize("taskset, told", [(change, told) for told, change in REFUSED.items()], indirect=["taskset"])
def test_what_one_turn_cannot_do_is_refused(taskset: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        list(VerifiersTaskset(taskset).prompts())


def test_a_taskset_that_is_not_installed_is_told() -> None:
    pytest.importorskip("verifiers.v1")
    with pytest.raises(UserError, match="no-such-taskset"):
        VerifiersTaskset("no-such-taskset")


def test_without_the_package_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers.v1", None)
    with pytest.raises(UserError, match=r"pip install \"leyden\[verifiers\]\""):
        VerifiersTaskset("gsm8k")
