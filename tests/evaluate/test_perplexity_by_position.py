"""The loss by position: exact to the model's own logits, whole or in pieces, and what its figures are of."""

import math

import numpy as np
import pytest
import torch
from subjects import make_subject

from leyden.core.errors import UserError
from leyden.evaluate import Options, evaluate
from leyden.evaluate.likelihood import Window, window_nats
from leyden.evaluate.scores import ratio_with_interval
from leyden.evaluate.scores_page import write_scores_page
from leyden.evaluate.sources import EngineSource
from leyden.evaluate.tasks.perplexity_by_position import bucket_bounds
from leyden.model import HybridLM, preset
from leyden.tokenizer import Tokenizer

TEXT = "".join(f"def f{n}(x):\n    return x * {n * n} + {n}\n" for n in range(90))


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    tokenizer = Tokenizer.train([TEXT], vocab_size=300)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1}
    sizes = {"head_dim": 16, "rotary_dim": 8, "intermediate_size": 16}
    model = HybridLM(preset("tiny", vocab_size=tokenizer.vocab_size, **shape, **sizes)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(6)
    folder = tmp_path_factory.mktemp("documents")
    for name, text in (("a", TEXT), ("b", TEXT[700:]), ("c", "x = 1\n")):
        (folder / f"{name}.txt").write_text(text)
    subject = make_subject(tmp_path_factory.mktemp("subject"), 4096, tokenizer=tokenizer)
    return model, tokenizer, subject, folder


def test_buckets_cover_every_position_once():
    for length in (32, 33, 100, 128, 1025):
        bounds = bucket_bounds(length)
        assert (np.diff(bounds) > 0).all()
        assert bounds[[0, 1, -1]].tolist() == [1, 16, length]
        assert all(bound.bit_count() == 1 for bound in bounds[:-1].tolist())


def test_the_curve_is_that_of_the_model_s_logits(setting):
    model, tokenizer, subject, folder = setting
    options = Options(lengths=(200, 100), samples=2, text=(folder,))
    (line,) = evaluate(EngineSource(model, tokenizer), subject, ["perplexity_by_position"], options)
    ids = [tokenizer.encode(text) for text in (TEXT, TEXT[700:])]
    for length in (100, 200):
        losses = np.zeros((2, length))  # of each document, the sum over its windows at each position
        sizes = np.zeros((2, length))
        for document, own in enumerate(ids):
            for part in range(2):
                stretch = own[part * (length - 1) : (part + 1) * (length - 1)]
                tokens = torch.tensor([[tokenizer.bos_id, *stretch]])
                with torch.inference_mode():
                    logprobs = model(tokens).double().log_softmax(-1)[0]
                losses[document, 1:] -= logprobs[:-1].gather(1, tokens[0, 1:, None])[:, 0].numpy()
                sizes[document, 1:] += [len(tokenizer.token_bytes(token)) for token in stretch]
        cells = [cell for cell in line["cells"] if cell["length"] == length]
        bounds = bucket_bounds(length)
        assert [cell["position"] for cell in cells] == bounds[1:].tolist()
        for cell, begin, end in zip(cells, bounds, bounds[1:], strict=False):
            nats = losses[:, begin:end].sum()
            assert cell["value"] == pytest.approx(nats / (4 * (end - begin)), abs=2e-6)
            assert cell["perplexity"] == pytest.approx(math.exp(cell["value"]), rel=1e-6)
            assert cell["bits_per_byte"] == pytest.approx(nats / math.log(2) / sizes[:, begin:end].sum(), abs=2e-6)
            assert cell["interval"][0] <= cell["value"] <= cell["interval"][1]
    assert line["value"] == pytest.approx(losses.sum() / (4 * 199), abs=2e-6)  # of the longest windows
    assert (line["n"], line["documents"]) == (2, 2)  # the third document is too short


def test_pieces_give_what_the_whole_gives(setting):
    model, tokenizer, *_ = setting
    ids = np.array(tokenizer.encode(TEXT)[:701])
    (whole,) = window_nats(model, [Window(ids[:-1], ids[1:])])
    (pieces,) = window_nats(model, [Window(ids[:-1], ids[1:])], forward_tokens=128)
    np.testing.assert_allclose(pieces, whole, atol=1e-5)


def test_the_page_shows_a_curve_for_each_length(setting, tmp_path):
    model, tokenizer, subject, folder = setting
    options = Options(lengths=(64, 128), text=(folder,))
    for name in ("one", "other"):
        list(evaluate(EngineSource(model, tokenizer), subject, ["perplexity_by_position"], options, tmp_path / name))
    page = (tmp_path / "one" / "index.html").read_text()
    assert "curve-perplexity_by_position" in page
    write_scores_page([tmp_path / "one", tmp_path / "other"], tmp_path / "both.html")
    assert "perplexity_by_position by position" in (tmp_path / "both.html").read_text()


def test_what_cannot_be_measured_is_refused(setting):
    model, tokenizer, subject, folder = setting
    for options, says in (
        (Options(lengths=(4000,), text=(folder,)), "no document fills a window of 4000 tokens .the longest has"),
        (Options(lengths=(16,), text=(folder,)), "two buckets of positions take 32"),
        (Options(lengths=(8192,), text=(folder,)), "has 4096 positions"),
    ):
        with pytest.raises(UserError, match=says):
            list(evaluate(EngineSource(model, tokenizer), subject, ["perplexity_by_position"], options))


def test_the_interval_of_a_ratio():
    generator = np.random.default_rng(1)
    denominators = generator.uniform(50, 150, 400)
    numerators = denominators * generator.normal(3.0, 0.5, 400)
    figures = ratio_with_interval(numerators, denominators)
    value = numerators.sum() / denominators.sum()
    residuals = numerators - value * denominators
    assert figures["value"] == pytest.approx(value, abs=1e-6)
    assert figures["stderr"] == pytest.approx(math.sqrt((residuals**2).sum()) / denominators.sum(), rel=0.1)
    assert figures["interval"][1] - figures["interval"][0] == pytest.approx(2 * 1.96 * figures["stderr"], rel=0.1)
    assert ratio_with_interval(np.ones(1), np.full(1, 2.0))["interval"] is None
