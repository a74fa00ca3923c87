"""On the weights that sampled, trainer and engine agree to the bit: the ratio of probabilities is exactly 1.

The model's experts are at a capacity that drops tokens in training, and sampling begins behind a training step.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import HybridLM, Ranks, text_logprobs
from leyden.model.mixers.table import MIXERS
from leyden.ops import IGNORE_INDEX
from leyden.serve import Engine, Sampling
from leyden.train import MasterAdamW, Pretrain, TrainState, train_step

SIZES = {"max_sequences": 8, "kv_gigabytes": 0.02, "cache_gigabytes": 0.001, "swap_gigabytes": 0.001}
KINDS = (
    "linear_attention",
    "full_attention",
    "sliding_attention",
    "cosformer2_attention",
    "hgrn2_attention",
    "latent_attention",
)
LATENT = {"q_lora_rank": 40, "kv_lora_rank": 24, "qk_nope_head_dim": 20, "qk_rope_head_dim": 8, "v_head_dim": 12}
PROMPTS = [[1, 2, 3], [7] * 265, list(range(40))]
SAMPLING = Sampling(max_tokens=21, seed=4, n=2, logprobs=0, ignore_eos=True)


def train(state: TrainState) -> None:
    tokens = torch.randint(0, 290, (1, 96), generator=torch.Generator().manual_seed(state.step))
    labels = torch.cat([tokens[:, 1:], torch.full((1, 1), IGNORE_INDEX)], 1)
    batch = SimpleNamespace(tokens=tokens, labels=labels, cu_seqlens=torch.tensor([0, 50, 96], dtype=torch.int32))
    result = train_step(state, [batch], Pretrain(), lr=1e-2, clip_norm=1.0)
    assert result.metrics["dropped"] > 0 and not result.skipped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ratios_are_exactly_1_behind_a_training_step(make_model: Callable[..., HybridLM], dtype: torch.dtype) -> None:
    assert set(KINDS) == set(MIXERS), "every kind of mixer has the same bits in training as in an engine"
    shape = {"layer_types": KINDS, "num_hidden_layers": len(KINDS), "sliding_window": 100, "rotary_dim": 8, **LATENT}
    trained = make_model(**shape, capacity_factor=0.5).to(dtype)
    state = TrainState(trained, MasterAdamW(trained))
    engine = Engine(copy.deepcopy(trained), **SIZES)
    for version in (1, 2):
        train(state)
        engine.update_weights(trained)
        completions = engine.generate(PROMPTS, SAMPLING)
        assert {made.weights_version for made in completions} == {version}
        texts = [[*made.prompt, *made.tokens] for made in completions]
        old = [torch.tensor(logprobs) for logprobs in engine.text_logprobs(texts)]
        assert trained.training
        new = text_logprobs(trained, texts)
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(text_logprobs(trained, texts), old, strict=True))
        ratios = torch.cat([(a - b).exp() for a, b in zip(new, old, strict=True)])
        assert len(ratios) == sum(map(len, texts)) - len(texts) and bool((ratios == 1).all())
        bound = 1e-5 if dtype == torch.float32 else 0.2  # of what was drawn by the recurrence
        for made, scored in zip(completions, old, strict=True):
            drawn = torch.tensor([token.logprob for token in made.logprobs])
            assert (drawn - scored[-len(drawn) :]).abs().max() < bound
    ratios.sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())
    train(state)
    assert not torch.equal(text_logprobs(trained, texts)[0], old[0])


def test_the_gradient_is_that_of_the_plain_forward(make_model: Callable[..., HybridLM]) -> None:
    model, text = make_model().double(), [5, 4, 3, 2, 1] * 7
    (logprobs,) = text_logprobs(model, [text])
    logprobs.square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    tokens = torch.tensor(text)
    plain = model(tokens[None])[0, :-1].log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]
    plain.square().sum().backward()
    torch.testing.assert_close(logprobs, plain, rtol=0, atol=1e-10)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-10)


def test_what_cannot_be_scored_is_refused(make_model: Callable[..., HybridLM]) -> None:
    model = make_model(max_position_embeddings=16)
    engine = Engine(model, **SIZES)
    assert engine.text_logprobs([[3]]) == [[]] and len(text_logprobs(model, [[3]])[0]) == 0
    for scores in (lambda texts: text_logprobs(model, texts), engine.text_logprobs):
        with pytest.raises(UserError, match=r"17 tokens .*max_position_embeddings"):
            scores([[1], [1] * 17])
        with pytest.raises(UserError, match=r"at least one token"):
            scores([[1], []])
    model.ranks = type("Several", (Ranks,), {})()
    with pytest.raises(UserError, match="several ranks have a part"):
        text_logprobs(model, [[1, 2]])


def test_the_example_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    chapter = page.split("## New weights in a running engine")[1].split("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", chapter, re.DOTALL)
    exec(compile(example, "serving.md", "exec"), {})
    assert capsys.readouterr().out == "sampled by version 1, now 2\n"
