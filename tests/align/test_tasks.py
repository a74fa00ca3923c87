"""Tasks with a verifier: right answers are right, and nothing that is held out is trained on."""

from collections import Counter

import pytest

from leyden.align.chats.read import read_chats, read_preferences
from leyden.align.prompts import read_prompts
from leyden.align.prompts.tags import task_of
from leyden.align.rewards.rows import RowSettings, grade_all
from leyden.align.tasks import LongTasks, QuickTasks, ShortTasks, task_rows
from leyden.core.errors import UserError


@pytest.mark.parametrize("tasks", [ShortTasks(), QuickTasks(), LongTasks()])
def test_the_right_answer_has_the_reward_and_no_other(tasks: ShortTasks) -> None:
    rows = [*tasks.prompts(), *tasks.held_out()]
    for row in rows:
        assert tasks.score(row, f" {row['completion']}\n").reward == 1
        found = tasks.score(row, row["rejected"])
        assert found.reward == 0 and found.components == {row["task"]: 0.0}
    kinds = Counter(row["task"] for row in rows)
    assert min(kinds.values()) > 50


def test_what_is_held_out_is_not_trained_on() -> None:
    trained, held_out = ({row["prompt"] for row in task_rows("short", held_out=side)} for side in (False, True))
    assert trained and held_out and not trained & held_out
    assert 0.05 < len(held_out) / len(trained) < 0.2
    assert list(task_rows("long")) == list(task_rows("long"))


def test_chats_and_pairs_of_tasks() -> None:
    rejects: list = []
    chats, rows = list(read_chats(["tasks:short"], rejects)), list(task_rows("short"))
    assert [chat.messages[-1]["content"] for chat in chats] == [row["completion"] for row in rows]
    pair = next(read_preferences(["tasks:long"], rejects))
    assert pair.chosen != pair.rejected and not rejects


def test_prompts_of_tasks_are_graded_by_their_references() -> None:
    rejects: list = []
    prompts = read_prompts(["tasks:short"], rejects)
    rows = [{**prompt.row, "response": f"{prompt.row['reference']} ", "line": 1} for prompt in prompts[:4]]
    rows += [{**rows[0], "response": rows[1]["response"]}]
    assert [one.reward for one in grade_all(rows, RowSettings("exact"))] == [1, 1, 1, 1, 0] and not rejects
    assert {task_of(prompt) for prompt in prompts} == {"say", "turn", "last", "sum"}


def test_other_tasks_are_refused() -> None:
    with pytest.raises(UserError, match=r"must be one of tasks:short, tasks:quick, tasks:long; did you mean 'short'"):
        list(read_chats(["tasks:shrt"], []))
