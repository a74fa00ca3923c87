"""``leyden sample``: drawing that nothing interrupts for good, the hierarchy, the choice, and what is written."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import leyden
from leyden.align.chats.read import read_chats
from leyden.align.prompts.rows import prompt_row
from leyden.align.rewards import Reward
from leyden.align.rewards.judge import Judge
from leyden.align.rewards.rows import RowSettings
from leyden.align.rewards.truthfulness import cluster_statements, split_statements, truthfulness
from leyden.align.sampling.asking import Drawing, Response
from leyden.align.sampling.build import SampleSettings, build_data_set
from leyden.align.sampling.choice import ChoiceSettings, choose
from leyden.align.sampling.embeddings import mean_hidden
from leyden.align.sampling.grading import Grading, levels_of
from leyden.cli.app import app
from leyden.core.errors import UserError
from leyden.data.label.language_model import Reply
from leyden.model import HybridLM, preset
from leyden.tokenizer import Tokenizer

PROMPTS = [prompt_row({"prompt": f"What is {n} + 1?", "reference": str(n + 1)}, f"p:{n}", "p") for n in range(4)]


class Adder:
    """Adds one where the draw says so; may stop in the middle, as a killed run does."""

    identity = "adder"

    def __init__(self, stop_after=99):
        self.left, self.asked = stop_after, 0

    def complete(self, requests):
        for place, request in enumerate(requests):
            if not self.left:
                raise UserError("the endpoint is gone")
            self.left, self.asked = self.left - 1, self.asked + 1
            number = int(request.messages[-1].content.split()[2])
            if number == 3:
                yield place, Reply("for ever and ever and", "length")  # a model that never ends
            elif number == 2:
                yield place, Reply("prompt too long", "refused")
            else:
                yield place, Reply(f"It is {number + 1 + request.seed % 2}, as draw {request.seed % 5} says.")


def settings_of(**choice):
    return SampleSettings(
        Drawing((0.0, 0.5, 1.0), 3, 16),
        Grading(levels_of(["math"]), RowSettings("math")),
        ChoiceSettings(**{"best": 2, **choice}),
    )


def test_killed_and_resumed_gives_the_same_data_set(tmp_path):
    with pytest.raises(UserError, match="gone"):
        build_data_set(PROMPTS, Adder(stop_after=5), settings_of(), tmp_path / "killed", None)
    rest, whole = Adder(), Adder()
    build_data_set([*PROMPTS, PROMPTS[0]], rest, settings_of(), tmp_path / "killed", None)
    report = build_data_set(PROMPTS, whole, settings_of(), tmp_path / "whole", None)
    assert rest.asked < whole.asked == 4 * 7
    for name in ("data.jsonl", "samples.jsonl", "pairs.jsonl", "report.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert report["fates"]["cut"] == report["fates"]["refused"] == 7 and report["prompts_all_alike"] >= 2
    rows = [json.loads(line) for line in (tmp_path / "whole" / "data.jsonl").read_text().splitlines()]
    assert rows and len(rows) == report["kept"]
    for row in rows:
        made = row["provenance"]
        assert made["model"] == "adder" and made["reward"] == 1 and made["components"]["correct"] == 1
        assert made["settings"] == report["provenance"] and made["prompt"] in {p.id for p in PROMPTS[:2]}
    chats = list(read_chats([str(tmp_path / "whole" / "data.jsonl")], []))
    assert [chat.messages[-1]["content"] for chat in chats] == [row["messages"][-1]["content"] for row in rows]


def chosen_of(texts, rewards, finish="stop", embed=None, **settings):
    responses = [Response(PROMPTS[0], text, finish, 1.0, n) for n, text in enumerate(texts)]
    return choose(
        responses, [Reward(reward) for reward in rewards], ChoiceSettings(**{"least": 0.5, **settings}), embed
    )


def test_the_best_and_the_most_various():
    texts = [
        "one two three four five",
        "one two three four six",
        "one two  three four five",
        "quite another way",
        "",
        "x",
    ]
    found = chosen_of(texts, [0.7, 0.9, 0.9, 0.6, 1.0, None], best=3, ngram_share=0.5)
    assert found.fates == ("n-grams said before", "kept", "n-grams said before", "kept", "empty", "no reward")
    found = chosen_of(texts[:4], [0.7, 0.9, 0.9, 0.4], best=3, ngram_share=2)
    assert found.fates == ("a copy", "kept", "kept", "too small a reward") and found.kept == (1, 2)
    assert chosen_of(["a", "b"], [1, 1]).fates == ("kept", "enough are better")
    assert chosen_of(["a", "b"], [1, 1]).num_alike == 1 and chosen_of(["a"], [0]).num_without == 1
    vectors = np.array([[1, 0], [0.6, 0.8], [0.96, 0.28]], np.float32)
    found = chosen_of(["a", "b", "c"], [1, 1, 1], best=3, similarity=0.9, embed=lambda _: vectors)
    assert found.fates == ("kept", "kept", "too similar") and found.similarity[2] == pytest.approx(0.96)


def test_the_shortest_first():
    texts = ["a long answer that is right", "right", "short, right", "no"]
    found = chosen_of(texts, [1, 1, 1, 0], best=2, prefer="short")
    assert found.fates == ("enough are better", "kept", "kept", "too small a reward")
    with pytest.raises(UserError, match="--prefer is one of reward, short"):
        ChoiceSettings(prefer="long")


@pytest.mark.parametrize("wrong", [["maths"], ["math:two"], ["math:2"], ["math", "math"], []])
def test_rewards_that_there_are_not(wrong):
    with pytest.raises(UserError):
        levels_of(wrong)


def test_several_rewards_by_their_hierarchy(tmp_path):
    settings = SampleSettings(
        Drawing((1.0,), 2, 16), Grading(levels_of(["rules", "math:1"]), RowSettings("math")), ChoiceSettings(least=0.0)
    )
    build_data_set(PROMPTS[:1], Adder(), settings, tmp_path, None)
    row = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert row["components"]["rules"] == 1 and row["components"]["math.correct"] == row["components"]["math"]
    assert row["reward"] == (1 + row["components"]["math"]) / 2


class Verdicts:
    identity = "verdicts"

    def __init__(self):
        self.asked = []

    def complete(self, requests):
        for place, request in enumerate(requests):
            text = request.messages[-1].content
            self.asked.append(text)
            false, unclear = "made of cheese" in text, "nobody knows" in text
            yield place, Reply("hm" if unclear else json.dumps({"score": 0 if false else 10}))


def test_truthfulness_by_statements(tmp_path):
    assert split_statements(
        "# Title:\n- The moon is round. Is it so? Yes.\n```\na = 1 + 2 + 3\n```\n**Mars is red!**"
    ) == [
        "The moon is round.",
        "Mars is red!",
    ]
    (moon, mars) = cluster_statements([["The moon is round."], ["The moon is round!", "Mars is not round."]])
    assert moon.responses == (0, 1) and mars.responses == (1,)
    assert (
        len(cluster_statements([["It took 3 whole days."], ["It took 4 whole days."], ["It took no 3 whole days."]]))
        == 3
    )
    groups = [
        ("the moon?", ["The moon is round. It is made of cheese.", "The moon is round.", "Hello."]),
        ("else?", ["It is what nobody knows at all."]),
    ]
    model = Verdicts()
    first, second = truthfulness(groups, Judge(model, "", "judge", 99), tmp_path)
    assert [one.reward for one in first] == [0.5, 1.0, 1.0] and second[0].reward is None
    assert first[0].components == {"truthfulness": 0.5, "agreement": pytest.approx((2 / 3 + 1 / 3) / 2), "judged": 1.0}
    assert len(model.asked) == 4 and first[2].reason == "it states nothing"  # one a statement; the unclear one twice
    assert truthfulness([], Judge(model, "", "judge", 0), tmp_path) == []


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = Tokenizer.train(["What is 1 + 1? It is 2, as we say. How so?\n" * 9], vocab_size=270)
    shape = preset(
        "tiny",
        vocab_size=tokenizer.vocab_size,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        hidden_size=32,
        intermediate_size=32,
        head_dim=16,
        rotary_dim=8,
        max_position_embeddings=256,
    )
    folder = tmp_path_factory.mktemp("model") / "model"
    leyden.save(HybridLM(shape, seed=1), tokenizer, folder, layout="leyden")
    return folder


def test_embeddings_are_those_of_each_text_alone(model):
    opened, tokenizer = leyden.load(model)
    texts = ["What is 1?", "It is 2, as we say.", ""]
    together = mean_hidden(opened, tokenizer, texts)
    alone = np.concatenate([mean_hidden(opened, tokenizer, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert mean_hidden(opened, tokenizer, []).shape == (0, 32)


def test_both_verbs_on_a_model(model, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt.row) + "\n" for prompt in PROMPTS) + "no json\n")
    few = ["--samples", "2", "--max-tokens", "8", "--reward", "rules", "--device", "cpu"]
    asked = ["prompts", str(path), "--out", str(tmp_path / "set"), "--held-out", "0.3", "--model", str(model), *few]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "set" / "train.jsonl").read_text().splitlines()]
    assert rows and all(row["pass_rate"] == 1 and 0 < row["weight"] < 1 and row["measured"] == 2 for row in rows)
    out = tmp_path / "data"
    asked = [
        "sample",
        str(model),
        str(tmp_path / "set" / "train.jsonl"),
        "--out",
        str(out),
        *few,
        "--similarity",
        "0.99",
    ]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0
    report = json.loads((out / "report.json").read_text())
    assert report["prompts"] == len(rows) and report["responses"] == 4 * len(rows) == sum(report["fates"].values())
    pairs = CliRunner().invoke(app, ["pairs", str(out / "samples.jsonl"), str(out / "samples.jsonl")])
    assert pairs.exit_code == 0  # what was sampled holds its own rewards
    for wrong, says in (
        (["sample", str(model), "--out", "x", "--reward", "math"], "name a model and a file of prompts"),
        (["sample", str(model), str(path), "--out", "x", "--reward", "judge"], "name its server with"),
        (["prompts", str(path), "--out", "x", "--reward", "math"], "or none of them"),
        (["sample", str(model), str(path), "--out", "x", "--reward", "math", "--samples", "0"], "are 1 or more"),
    ):
        with pytest.raises(UserError, match=says):
            CliRunner().invoke(app, wrong, catch_exceptions=False)
