"""``run_tasks`` opens a stored model and measures it on files."""

import json

import pytest

import leyden
from leyden.core.errors import UserError
from leyden.evaluate import bits_per_byte, run_tasks
from leyden.model import HybridLM, preset
from leyden.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    tokenizer = Tokenizer.train(["def f(x):\n    return x + 1\n"] * 5, vocab_size=270)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1}
    sizes = {"head_dim": 16, "rotary_dim": 8, "intermediate_size": 16}
    model = HybridLM(preset("tiny", vocab_size=tokenizer.vocab_size, **shape, **sizes))
    directory = tmp_path_factory.mktemp("model") / "final"
    leyden.save(model, tokenizer, directory)
    return directory, model.eval(), tokenizer


def test_figures_of_a_stored_model(stored, tmp_path):
    directory, model, tokenizer = stored
    (tmp_path / "a.txt").write_text("def g(y):\n    return y\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    found = json.loads(run_tasks(directory, ["bits_per_byte"], [tmp_path]))
    expected = bits_per_byte(model, tokenizer, ["def g(y):\n    return y\n"]).bits_per_byte
    assert found["value"] == pytest.approx(expected)
    assert found["documents"] == found["set_aside"] == 1
    assert set(found["baselines"]) == {"xz_4096", "xz_documents"}


def test_an_unknown_task(stored, tmp_path):
    with pytest.raises(UserError, match="did you mean 'bits_per_byte'"):
        run_tasks(stored[0], ["bits_per_bite"], [tmp_path])


def test_a_model_without_tokenizer(stored, tmp_path):
    leyden.save(stored[1], None, tmp_path / "model")
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(UserError, match="has no tokenizer"):
        run_tasks(tmp_path / "model", ["bits_per_byte"], [tmp_path / "a.txt"])
