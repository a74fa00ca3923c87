"""``leyden pivots``: the search on a policy whose pivotal tokens are known, its pairs, and what is kept of it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import leyden
from leyden.align.chats.read import read_preferences
from leyden.align.prompts.rows import prompt_row
from leyden.align.rewards.rows import RowSettings
from leyden.align.sampling.pivots import PivotSettings, Policy, build_pivots
from leyden.core.errors import UserError
from leyden.model import HybridLM, preset
from leyden.serve import Completion
from leyden.tokenizer import Tokenizer

PROMPTS = [
    prompt_row({"prompt": "toss", "reference": "the 1 ends"}, "p:0", "p"),
    prompt_row({"prompt": "easy", "reference": "the 1 ends"}, "p:1", "p"),
    prompt_row({"prompt": "toss again"}, "p:2", "p"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["toss again, easy: the 1 or the 2 ends.\n" * 9], vocab_size=262)


class Tossing:
    """Says "the 1 ends" or "the 2 ends", each with chance one half, but of an easy prompt always the first."""

    def __init__(self, tokenizer, stop_after=10**6):
        self.tokenizer, self.left = tokenizer, stop_after
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=99))
        ways = [tokenizer.encode(f"the {number} ends") for number in (1, 2)]
        assert len(ways[0]) == len(ways[1])
        self.ways = ways

    def generate(self, prompts, how):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        (prompt,) = prompts
        drawn = np.random.default_rng(how.seed)
        length = len(self.ways[0])
        starts = [way[:size] for way in self.ways for size in range(length + 1)]
        begun = max((start for start in starts if not start or prompt[-len(start) :] == start), key=len)
        fitting = [way for way in self.ways if way[: len(begun)] == begun]
        easy = "easy" in self.tokenizer.decode(prompt)
        made = []
        for _ in range(how.n):
            way = fitting[0 if easy else drawn.integers(len(fitting))]
            made.append(Completion("", (*way[len(begun) :], 0), "stop", tuple(prompt), 0.0, 0.0))
        return made


def search(engine, tokenizer, folder, **settings):
    made = PivotSettings(**{"samples": 128, "max_tokens": 20, **settings})
    return build_pivots(PROMPTS, Policy(engine, tokenizer, "tossing"), RowSettings("exact"), made, folder)


def test_the_token_that_decides_is_found_and_paired(tokenizer, tmp_path):
    report = search(Tossing(tokenizer), tokenizer, tmp_path / "whole")
    assert report["prompts"] == {"searched": 1, "too easy": 1, "no reward": 1}
    assert (report["pivots"], report["pairs"]) == (2, 1), "in the right and in the wrong response; they make one pair"
    (pair,) = [json.loads(line) for line in (tmp_path / "whole" / "pairs.jsonl").read_text().splitlines()]
    said = pair["prefix"] + pair["chosen"], pair["prefix"] + pair["rejected"]
    assert said == ("the 1", "the 2") and pair["model"] == "tossing" and pair["prompt"] == "toss"
    (read,) = read_preferences([str(tmp_path / "whole" / "pairs.jsonl")], [])
    assert read.prefix == pair["prefix"]
    with pytest.raises(KeyboardInterrupt):
        search(Tossing(tokenizer, stop_after=report["completions"] // 128 - 1), tokenizer, tmp_path / "killed")
    rest = Tossing(tokenizer)
    assert search(rest, tokenizer, tmp_path / "killed") == report
    assert 10**6 - rest.left == 1, "the last prompt alone was asked again"
    for name in ("pairs.jsonl", "report.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"least_gap": 0}, {"lowest": 0.9}, {"temperature": 0}])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(UserError):
        PivotSettings(**wrong)


def test_a_reward_of_several_rows_is_refused(tokenizer, tmp_path):
    policy = Policy(Tossing(tokenizer), tokenizer, "x")
    with pytest.raises(UserError, match="looks at several responses at once"):
        build_pivots(PROMPTS, policy, RowSettings("agreement"), PivotSettings(), tmp_path)


def test_the_command_on_a_model(tmp_path, leyden_cli, tokenizer):
    shape = preset("tiny", vocab_size=tokenizer.vocab_size, num_hidden_layers=2, hidden_size=32, intermediate_size=32)
    shape = shape.model_copy(update={"layer_types": ("linear_attention", "full_attention")})
    leyden.save(HybridLM(shape, seed=1), tokenizer, tmp_path / "model", layout="leyden")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "toss", "reference": "1"}) + "\nno json\n")
    asked = ["pivots", tmp_path / "model", tmp_path / "p.jsonl", "--out", tmp_path / "out", "--reward", "math"]
    outcome = leyden_cli(*asked, "--samples", "4", "--max-tokens", "4", "--device", "cpu")
    assert outcome.code == 0 and "1 prompts: 1 too hard" in " ".join(outcome.err.split()), outcome.err
    assert (tmp_path / "out" / "pairs.jsonl").read_text() == ""
