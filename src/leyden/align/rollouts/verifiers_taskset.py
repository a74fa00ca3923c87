"""Tasksets of the ``verifiers`` package as environments of one turn (https://github.com/PrimeIntellect-ai/verifiers).

Its tasks have data and rewards, methods that read a trace of what was said. Here the trace is made of the prompt and
the policy's answer, and the rewards are asked for as ``verifiers`` does it offline. What needs more than that (tools, a
container, another model) is refused, so that no reward is left out in silence.
"""

import asyncio
import importlib
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

from leyden.align.rewards.reward import Reward
from leyden.core.errors import UserError

TASKS = "verifiers"
"""``environment = "verifiers:ID"`` names the taskset ID."""


class VerifiersTaskset:
    """An environment (:class:`leyden.align.rollouts.environment.Environment`) of the tasks of a taskset.

    Args:
        id: as ``verifiers`` knows it: the name of an installed package, or ``owner/name`` of its hub.

    Raises:
        UserError: ``verifiers`` is not installed, or older than 0.4; there is no such taskset; it never ends; or its
            tasks need tools, a container or the runtime of one, which an environment of one turn has not.
    """

    def __init__(self, id: str) -> None:
        self._id, self._library = id, _module("verifiers.v1")
        self._state_of = _module("verifiers.v1.state").state_cls
        try:
            taskset = self._library.load_taskset(self._library.TasksetConfig(id=id))
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f'environment = "{TASKS}:{id}": {error}.') from error
        self._refuse_unless_one_turn(taskset)
        self._taskset: Iterable[Any] = taskset
        self._tasks: dict[int, Any] = {}

    def prompts(self) -> Iterable[Mapping[str, Any]]:
        """A row for each task: its ``prompt`` as messages (with its system prompt before it), its data as ``task``."""
        for task in self._taskset:
            self._refuse_a_reward_with_a_runtime(task)
            data = task.data.model_dump(mode="json")
            self._tasks[task.data.idx] = task
            yield {"prompt": _messages(data), "task": data}

    def score(self, row: Mapping[str, Any], response: str, /) -> Reward:
        """The sum of a task's rewards, each times its weight; its components are the rewards and the metrics.

        Raises:
            Exception: whatever a reward of the task raises.
        """
        library, task = self._library, self._tasks[row["task"]["idx"]]
        said = [*row["prompt"], {"role": "assistant", "content": response}]
        nodes = [
            {"message": message, "parent": at - 1 if at else None, "sampled": at == len(said) - 1}
            for at, message in enumerate(said)
        ]
        trace = library.Trace(
            task=library.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
            state=self._state_of(type(task))(),
            agent=library.AgentInfo(config=library.AgentConfig()),
            nodes=[library.MessageNode.model_validate(node) for node in nodes],
        )
        asyncio.run(task.score(trace))
        found = trace.metrics | {name: reward and reward.score for name, reward in trace.rewards.items()}
        wrong = [name for name, value in found.items() if value is not None and not math.isfinite(value)]
        if wrong:
            return Reward(None, {}, f"{wrong[0]} gave {found[wrong[0]]}, which is no finite number")
        return Reward(float(trace.reward), found)

    def _refuse_unless_one_turn(self, taskset: Any) -> None:
        kind = type(taskset).task_type()
        if not taskset.bounded:
            self._refuse("never ends, and prompts are read once; give a taskset with an end")
        if kind.NEEDS_CONTAINER:
            self._refuse("needs a container for its tasks, and an answer of the policy is all that is made here")
        if type(taskset).toolsets(taskset.config) or kind.toolsets(taskset.config.task):
            self._refuse("gives its tasks tools; write the environment with a method reply(row, answers) for them")

    def _refuse_a_reward_with_a_runtime(self, task: Any) -> None:
        for hook in [*task.hooks("reward"), *(judge.score for judge in task.plugged_judges())]:
            asked = inspect.signature(hook).parameters.get("runtime")
            if asked is not None and asked.default is inspect.Parameter.empty:
                self._refuse(f"has a reward, {hook.__name__}, that reads the runtime of a container")

    def _refuse(self, why: str) -> None:
        raise UserError(f'environment = "{TASKS}:{self._id}": the taskset {why}.')


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f'environment = "{TASKS}:..." needs the package verifiers, 0.4 or later: pip install "leyden[verifiers]".'
        ) from None


def _messages(data: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """None where the task leaves the first word to a user, of whom there is none: such a row is set aside."""
    prompt = data["prompt"]
    if prompt is None:
        return None
    begun = [{"role": "system", "content": data["system_prompt"]}] if data["system_prompt"] else []
    return [*begun, *([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)]
