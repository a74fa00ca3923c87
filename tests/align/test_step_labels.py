"""``leyden steps``: labels by completions and by a judge, their consensus, and what is kept of them."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from stub_endpoint import serving
from typer.testing import CliRunner

import leyden
from leyden.align.process_rewards.build import StepSettings, build_steps
from leyden.align.process_rewards.completing import CompletionSettings, first_wrong
from leyden.align.process_rewards.judging import first_wrong_in
from leyden.align.process_rewards.solutions import read_solutions
from leyden.align.prompts.rows import PromptRow, prompt_row
from leyden.align.rewards.judge import Judge
from leyden.align.rewards.rows import RowSettings
from leyden.align.sampling.asking import Drawing
from leyden.align.sampling.pivots import Policy
from leyden.cli.app import app
from leyden.core.errors import UserError
from leyden.data.label.language_model import Reply
from leyden.model import HybridLM, preset
from leyden.serve import Completion
from leyden.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["good step, bad step, odd step, answer 1 or 2?\n" * 9], vocab_size=262)


class Completing:
    """Ends with the right answer behind good steps, with a wrong one behind a bad step, and half and half behind odd
    ones."""

    def __init__(self, tokenizer: Tokenizer, stop_after: int = 10**6) -> None:
        self.tokenizer, self.left, self.drawn = tokenizer, stop_after, 0
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=200))

    def generate(self, prompts: Any, how: Any) -> list[Completion]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        made = []
        for prompt, one in zip(prompts, how, strict=True):
            text = self.tokenizer.decode(list(prompt))
            for number in range(one.n):
                right = "bad" not in text and ("odd" not in text or number % 2 == 0)
                made.append(Completion(f"answer {1 if right else 2}", (0,), "stop", tuple(prompt), 0.0, 0.0))
                self.drawn += 1
        return made


class Solving:
    """Draws one solution of each problem, cut where the problem says so."""

    identity = "solving"

    def complete(self, requests: Any) -> Any:
        for number, request in enumerate(requests):
            cut = "long" in request.messages[-1].content
            yield number, Reply("good step\nanswer 1", "length" if cut else "stop")


class Judging:
    """Names the step that says bad, and the second where it says odd; says nothing of the word silent."""

    identity = "judging"

    def __init__(self) -> None:
        self.asked = 0

    def complete(self, requests: Any) -> Any:
        for number, request in enumerate(requests):
            self.asked += 1
            steps = request.messages[-1].content.partition("======== the solution")[2].split("[step ")[1:]
            wrong = next((n for n, step in enumerate(steps, 1) if "bad" in step or ("odd" in step and n > 1)), 0)
            told = "hm" if "silent" in request.messages[-1].content else f'Look. {{"first_wrong": {wrong}}}'
            yield number, Reply(told)


def problem(response: str | None, prompt: str = "1 or 2?", **more: Any) -> PromptRow:
    given = {} if response is None else {"response": response}
    return prompt_row({"prompt": prompt, "reference": "1", **given, **more}, "f:1", "f")


ROWS = [
    problem("good step\nbad step\ngood step\nanswer 2"),
    problem("good step\n\ngood step\n\nanswer 1"),
    problem("bad step\nanswer 1"),
    problem("good step\nodd step\nanswer 1"),
    problem(None, "silent 1 or 2?"),
    problem(None, "long 1 or 2?"),
    problem("good step\nodd step\nanswer 1"),
    problem(" \n "),
    problem("good step\nanswer 1", finish="length"),
    problem("good step\nanswer 1", "no key?", reference=None),
    problem("good step " * 99 + "\nanswer 1"),
    problem(None, steps=["good step", "answer\n\n2"]),
]


def label(tokenizer: Tokenizer, folder: Any, engine: Any = None, judge: Any = None, **how: Any) -> dict[str, Any]:
    asked = Judge(judge, "", "judge", 99) if judge is not None else None
    samples = how.pop("samples", 4)
    completions = CompletionSettings(samples, 80, **how) if samples else None
    policy = Policy(engine or Completing(tokenizer), tokenizer, "completing")
    settings = StepSettings(Drawing((1.0,), 1, 80), completions, asked)
    return build_steps(ROWS, Solving(), policy, RowSettings("math"), settings, folder)


def rows(place: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.read_text().splitlines()]


def test_labels_by_completions(tokenizer, tmp_path):
    engine = Completing(tokenizer)
    report = label(tokenizer, tmp_path, engine)
    kept = rows(tmp_path / "solutions.jsonl")
    assert [row["labels"] for row in kept] == [
        [True, False, None, None],
        [True, True, True],
        [False, None],
        [True, True, True],
        [True, False],  # the steps that were given, of which the last says the wrong answer
        [True, True],  # drawn
    ]
    assert kept[0]["chances"] == [1, 0, 0, 0] and kept[3]["chances"] == [1, 0.5, 1]
    assert report["kept"] == 6 and report["right"] == 4
    reasons = report["left_out"]
    assert reasons["a copy"] == 1 and reasons["it says nothing"] == 1 and reasons["it was cut"] == 2
    assert reasons["it has no reward"] == 1 and sum("longer than" in reason for reason in reasons) == 1
    read = list(read_solutions([str(tmp_path / "solutions.jsonl")], []))
    assert [list(one.labels) for one in read] == [row["labels"] for row in kept]
    drawn = engine.drawn
    again = Completing(tokenizer, stop_after=0)
    assert label(tokenizer, tmp_path, again) == report and not again.drawn and drawn == 4 * 10
    label(tokenizer, tmp_path, again, least=0.5)
    assert rows(tmp_path / "solutions.jsonl")[3]["labels"] == [True, False, None], "chances are kept, labels are made"


def test_completions_and_a_judge_have_to_agree(tokenizer, tmp_path):
    judge = Judging()
    report = label(tokenizer, tmp_path, judge=judge)
    kept, left_out = rows(tmp_path / "solutions.jsonl"), rows(tmp_path / "left_out.jsonl")
    assert [row["labels"] for row in kept] == [[True, False, None, None], [True] * 3, [False, None]]
    assert report["left_out"]["completions and judge differ"] == 2, "odd steps, and a wrong answer the judge let pass"
    differ = next(row for row in left_out if row["why"] == "completions and judge differ")
    assert differ["first_wrong"] == {"completions": 0, "judge": 2}
    (silent,) = [row for row in left_out if row["why"].startswith("judge: ")]
    assert silent["why"] == "judge: no first wrong step in 'hm'"
    asked = judge.asked
    assert label(tokenizer, tmp_path, judge=judge) == report
    assert judge.asked == asked, "what was answered, nonsense too, is on disk"
    alone = label(tokenizer, tmp_path / "alone", Completing(tokenizer, stop_after=0), judge, samples=0)
    assert alone["kept"] == 6 and alone["completions"] is None


def test_a_run_that_was_killed_goes_on(tokenizer, tmp_path, monkeypatch):
    whole = label(tokenizer, tmp_path / "whole")
    monkeypatch.setattr("leyden.align.process_rewards.completing._AT_ONCE", 2)
    with pytest.raises(KeyboardInterrupt):
        label(tokenizer, tmp_path / "killed", Completing(tokenizer, stop_after=2))
    rest = Completing(tokenizer)
    assert label(tokenizer, tmp_path / "killed", rest) == whole and rest.drawn == 4 * 2
    for name in ("solutions.jsonl", "left_out.jsonl", "report.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('{"first_wrong": 2}', 2),
        ('{"first_wrong": 1} no: {"first_wrong": 0}', 0),
        ('{"first_wrong": 4}', None),
        ('{"first_wrong": true}', None),
        ('{"first_wrong": "1"}', None),
        ('{"score": 1}', None),
        ("step 2", None),
    ],
)
def test_what_a_judge_may_say(answer, found):
    assert first_wrong_in(answer, 3) == found


def test_settings_that_there_are_not(tokenizer, tmp_path):
    assert first_wrong([1.0, 0.5], 0.5) == 2 and first_wrong([1.0, 0.5], 0.0) == 0
    for wrong in ({"samples": 129}, {"temperature": 0}, {"least": 1.0}, {"max_tokens": 0}):
        with pytest.raises(UserError, match="samples is from 1 to 128"):
            CompletionSettings(**wrong)
    with pytest.raises(UserError, match="by a judge"):
        StepSettings(Drawing(), None, None)
    policy = Policy(Completing(tokenizer), tokenizer, "x")  # pyright: ignore[reportArgumentType]
    settings = StepSettings(Drawing(), CompletionSettings(), None)
    with pytest.raises(UserError, match="looks at several responses"):
        build_steps(ROWS, Solving(), policy, RowSettings("agreement"), settings, tmp_path)


def test_the_verb_with_a_model_and_a_judge(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    said = Tokenizer.train(["good step, bad step, odd step, answer 1 or 2?\n" * 9], vocab_size=262)
    shape = {"vocab_size": 262, "max_position_embeddings": 128}
    leyden.save(HybridLM(preset("tiny", **shape), seed=0), said, tmp_path / "m", "leyden")
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}?", "reference": "1", "response": "1 step\n2 steps"}) + "\n" for n in "ab")
    )

    def verdict(number: int, data: Any) -> tuple[int, dict[str, str], str]:
        said = {"message": {"content": '{"first_wrong": 1}'}, "finish_reason": "stop"}
        return 200, {}, json.dumps({"choices": [said]})

    with serving() as start:
        server = start(verdict)
        asked = ["steps", str(tmp_path / "m"), str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "out")]
        asked += ["--reward", "math", "--samples", "2", "--max-tokens", "24", "--judge-endpoint", server.url]
        done = CliRunner().invoke(app, [*asked, "--judge-name", "j"], catch_exceptions=False)
    assert done.exit_code == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["solutions"] == 2 and report["kept"] + sum(report["left_out"].values()) == 2
    assert len(server.calls) == 2
