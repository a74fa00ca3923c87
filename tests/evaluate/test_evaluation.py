"""The evaluation: rows that survive a kill, figures of all of them, the page, and real engines as the source."""

import json
import math
import shutil

import numpy as np
import pytest
from subjects import Never, Oracle, make_subject

import leyden
from leyden.core.errors import UserError
from leyden.evaluate import Options, bits_per_byte, evaluate
from leyden.evaluate.opening import open_model
from leyden.evaluate.rows import read_rows
from leyden.evaluate.scores import mean_with_interval, wilson
from leyden.evaluate.scores_page import write_scores_page
from leyden.evaluate.sources import EngineSource
from leyden.evaluate.tasks.niah import Niah
from leyden.model import HybridLM, preset
from leyden.tokenizer import Tokenizer

OPTIONS = Options(lengths=(700,), depths=3, samples=2)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    tokenizer = Tokenizer.train(["def f(x):\n    return x + 1\n"] * 5, vocab_size=270)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1}
    sizes = {"head_dim": 16, "rotary_dim": 8, "intermediate_size": 16}
    model = HybridLM(preset("tiny", vocab_size=tokenizer.vocab_size, **shape, **sizes))
    directory = tmp_path_factory.mktemp("model") / "final"
    leyden.save(model, tokenizer, directory)
    return directory, model.eval(), tokenizer


class Stops(Oracle):
    """Fails after some answers, as a killed process does."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def answers(self, questions):
        for answer in super().answers(questions):
            if not self._after:
                raise KeyboardInterrupt
            self._after -= 1
            yield answer


def test_a_killed_evaluation_goes_on_where_it_was(subject, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        list(evaluate(Stops(4), subject, ["niah"], OPTIONS, tmp_path / "out"))
    path = tmp_path / "out" / "niah.jsonl"
    assert len(read_rows(path)) == 4
    assert not (tmp_path / "out" / "index.html").exists()
    with path.open("a") as file:
        file.write('{"id": "700-0-1", "set')  # a kill in the middle of a row
    source = Oracle()
    (line,) = evaluate(source, subject, ["niah"], OPTIONS, tmp_path / "out")
    assert len(source.asked) == 2
    (whole,) = evaluate(Oracle(), subject, ["niah"], OPTIONS)
    assert {k: line[k] for k in ("value", "n", "cells", "settings")} == {
        k: whole[k] for k in ("value", "n", "cells", "settings")
    }
    assert len(read_rows(path)) == 6
    assert all(row["score"] == 1 and row["expected"] for row in read_rows(path))
    again = Oracle()
    (line,) = evaluate(again, subject, ["niah"], OPTIONS, tmp_path / "out")
    assert not again.asked
    assert line["n"] == 6
    wider = Oracle()
    list(evaluate(wider, subject, ["niah"], Options(lengths=(700, 800), depths=3, samples=2), tmp_path / "out"))
    assert len(wider.asked) == 6


def test_rows_of_other_settings_are_not_mixed_in(subject, tmp_path):
    list(evaluate(Oracle(), subject, ["niah"], OPTIONS, tmp_path))
    before = (tmp_path / "niah.jsonl").read_text()
    for source, options in (
        (Never(), OPTIONS),
        (Oracle(), Options(lengths=(700,), depths=3, seed=1)),
        (Oracle(), Options(lengths=(700,), depths=4)),
    ):
        with pytest.raises(UserError, match="of another model or of other settings"):
            list(evaluate(source, subject, ["niah"], options, tmp_path))
    assert (tmp_path / "niah.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("broken", "says"),
    [("nonsense", "row 2: it is no JSON object"), ('{"id": 3}', "row 2: its field 'id'"), ("[]", "no JSON object")],
)
def test_a_broken_row_is_named(subject, tmp_path, broken, says):
    list(evaluate(Oracle(), subject, ["niah"], OPTIONS, tmp_path))
    lines = (tmp_path / "niah.jsonl").read_text().splitlines()
    (tmp_path / "niah.jsonl").write_text("\n".join([lines[0], broken, *lines[1:]]) + "\n")
    with pytest.raises(UserError, match=says):
        list(evaluate(Oracle(), subject, ["niah"], OPTIONS, tmp_path))


def test_nothing_is_written_where_an_option_is_wrong(subject, tmp_path):
    with pytest.raises(UserError, match="positions"):
        list(evaluate(Oracle(), subject, ["niah"], Options(lengths=(700, 10**6)), tmp_path / "out"))
    with pytest.raises(UserError, match="did you mean 'niah'"):
        list(evaluate(Oracle(), subject, ["niahs"], OPTIONS, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_page_of_one_model_and_of_two(subject, tmp_path):
    for name, source in (("good", Oracle()), ("bad<b>", Never())):
        list(evaluate(source, subject, ["niah"], OPTIONS, tmp_path / name))
    page = (tmp_path / "good" / "index.html").read_text()
    assert "heat-niah-0" in page and "1.000" in page and "n = 6" in page
    write_scores_page([tmp_path / "good", tmp_path / "bad<b>"], tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    assert "heat-niah-0" in page and "heat-niah-1" in page
    assert "bad&lt;b&gt;" in page and "<b>" not in page
    with pytest.raises(UserError, match="has no results"):
        write_scores_page([tmp_path], tmp_path / "none.html")


def test_an_engine_answers_and_shares_what_prompts_begin_with(stored, tmp_path):
    _, model, tokenizer = stored
    subject = make_subject(tmp_path, model.config.max_position_embeddings, tokenizer=tokenizer)
    source = EngineSource(model, tokenizer)
    options = Options(lengths=(2048,), depths=5)
    (line,) = evaluate(source, subject, ["niah"], options, tmp_path / "out")
    assert line["n"] == 5
    assert line["reading"]["factor"] > 3  # five prompts for the price of one, and of what follows the last page
    # The answers are those of each prompt by itself.
    alone = leyden.Engine(model, tokenizer, cache_gigabytes=0)
    rows = {row["id"]: row for row in read_rows(tmp_path / "out" / "niah.jsonl")}
    for item in Niah(options, subject).items()[:2]:
        question = item.build()
        (completion,) = alone.generate(
            [question.prompt], leyden.Sampling(max_tokens=question.max_tokens, temperature=0.0)
        )
        assert rows[item.id]["answer"] == completion.text
        assert rows[item.id]["prompt_tokens"] == len(question.prompt)


def test_bits_per_byte_of_a_stored_model(stored, tmp_path):
    directory, model, tokenizer = stored
    texts = ["def g(y):\n    return y\n", "x = 1\n" * 9]
    for name, text in zip("ab", texts, strict=True):
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    source, subject = open_model(str(directory), model.norm.weight.device, [tmp_path])
    (found,) = evaluate(source, subject, ["bits_per_byte"], Options(text=(tmp_path,)))
    expected = bits_per_byte(model, tokenizer, texts)
    assert found["value"] == pytest.approx(expected.bits_per_byte, rel=1e-12)
    assert (found["documents"], found["set_aside"], found["n"]) == (2, 1, 2)
    assert (found["bytes"], found["tokens"]) == (expected.num_bytes, expected.num_tokens)
    assert set(found["baselines"]) == {"xz_4096", "xz_documents"}
    low, high = found["interval"]
    assert low < found["value"] < high
    with pytest.raises(UserError, match="--text"):
        list(evaluate(source, subject, ["bits_per_byte"], Options()))


def test_a_model_without_tokenizer(stored, tmp_path):
    leyden.save(stored[1], None, tmp_path / "model")
    with pytest.raises(UserError, match="has no tokenizer"):
        open_model(str(tmp_path / "model"), stored[1].norm.weight.device, [])


def test_two_evaluations_do_not_write_to_one_folder(subject, tmp_path):
    going_on = evaluate(Oracle(), subject, ["niah", "niah"], OPTIONS, tmp_path / "out")
    next(going_on)
    with pytest.raises(UserError, match="is in use"):
        list(evaluate(Oracle(), subject, ["niah"], OPTIONS, tmp_path / "out"))
    list(going_on)
    shutil.rmtree(tmp_path / "out")


def test_intervals():
    # Wilson's interval by its defining equation: |p - share| = z sqrt(p (1 - p) / n) at both ends.
    for hits, n in ((0, 1), (1, 1), (3, 10), (50, 50), (7, 300)):
        for end in wilson(hits, n):
            if 0 < end < 1:
                assert abs(end - hits / n) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / n))
    figures = mean_with_interval([0.25, 0.5, 1.0])
    assert figures["value"] == pytest.approx(7 / 12, abs=1e-6)
    assert figures["stderr"] == pytest.approx(np.std([0.25, 0.5, 1.0], ddof=1) / math.sqrt(3), abs=1e-6)
    assert figures["interval"][0] < figures["value"] < figures["interval"][1]
    assert mean_with_interval([0.5]) == {"value": 0.5, "stderr": None, "interval": None, "n": 1}


def test_rows_are_json_lines_with_what_was_asked_and_answered(subject, tmp_path):
    list(evaluate(Oracle(), subject, ["niah"], OPTIONS, tmp_path))
    row = json.loads((tmp_path / "niah.jsonl").read_text().splitlines()[0])
    keys = {"id", "settings", "length", "depth", "sample", "prompt_tokens", "answer", "expected", "score"}
    assert row.keys() == keys
