"""Scores of prompts that share beginnings: the tree of them, and that they are those of each prompt by itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.evaluate.prompt_scores import prompt_scores
from leyden.evaluate.prompt_tree import prompt_tree
from leyden.model import HybridLM, preset

LAYERS = {
    "hybrid": ("linear_attention", "full_attention", "linear_attention"),
    "window": ("linear_attention", "sliding_attention", "full_attention"),
}


def make_model(kind, **changes):
    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "rotary_dim": 8}
    sizes = {"intermediate_size": 24, "num_local_experts": 3, "vocab_size": 60, "max_position_embeddings": 1024}
    window = {"sliding_window": 24} if kind == "window" else {}
    layers = LAYERS[kind]
    model = HybridLM(
        preset("tiny", **shape, **sizes, **window, num_hidden_layers=len(layers), layer_types=layers, **changes), seed=3
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(6)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make_model("hybrid")


def alone(model, prompt, scored):
    """Nats and greedy choices of the last tokens, by a forward pass of the prompt alone."""
    tokens = torch.tensor([list(prompt)])
    with torch.inference_mode():
        logprobs = model(tokens)[0].double().log_softmax(-1)[:-1]
    nats = -logprobs.gather(1, tokens[0, 1:, None])[:, 0]
    return nats[-scored:].numpy(), (logprobs.argmax(-1) == tokens[0, 1:])[-scored:].numpy()


def check(model, prompts, scored, **limits):
    found = dict(prompt_scores(model, prompts, scored, **limits))
    assert sorted(found) == list(range(len(prompts)))
    for index, (prompt, count) in enumerate(zip(prompts, scored, strict=True)):
        nats, greedy = alone(model, prompt, count)
        np.testing.assert_allclose(found[index].nats, nats, atol=2e-5, rtol=1e-5)
        assert found[index].greedy.tolist() == greedy.tolist()


def draw(generator, shared, num, most):
    """Prompts that branch off a few beginnings, which branch off one another."""
    beginnings = [generator.integers(60, size=generator.integers(0, shared + 1)).tolist() for _ in range(3)]
    beginnings.append(beginnings[0] + generator.integers(60, size=shared).tolist())
    return [
        [1, *beginnings[generator.integers(4)], *generator.integers(60, size=generator.integers(1, most + 1)).tolist()]
        for _ in range(num)
    ]


@settings(max_examples=50)
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12),
    least=st.integers(1, 5),
)
def test_every_prompt_is_a_path_and_nothing_is_read_twice_that_could_be_shared(texts, least):
    tree = prompt_tree(texts, least)
    assert sorted(tree.order.tolist()) == list(range(len(texts)))
    ends = [[] for _ in texts]
    total, waiting = 0, [(segment, []) for segment in tree.roots]
    while waiting:
        segment, before = waiting.pop()
        assert segment.start == len(before) and len(segment.tokens) > 0
        path = before + segment.tokens.tolist()
        total += len(segment.tokens)
        for number in range(segment.first, segment.last):
            text = texts[tree.order[number]]
            assert text[: len(path)] == path  # also that a segment of several is common to them all
            ends[number].append(len(path))
        if segment.last - segment.first > 1:
            assert len(segment.tokens) >= least
        waiting += [(child, path) for child in segment.children]
    assert [max(own) for own in ends] == [len(texts[index]) for index in tree.order]
    assert total == tree.num_tokens
    if least == 1:  # then it is a trie
        assert total == len({tuple(text[:size]) for text in texts for size in range(1, len(text) + 1)})


@settings(max_examples=10)
@given(seed=st.integers(0, 2**20), shared=st.integers(0, 90), num=st.integers(1, 14), most=st.integers(1, 40))
def test_scores_are_those_of_each_prompt_alone(model, seed, shared, num, most):
    generator = np.random.default_rng(seed)
    prompts = draw(generator, shared, num, most)
    scored = [int(generator.integers(1, len(prompt))) for prompt in prompts]
    check(model, prompts, scored, forward_tokens=int(generator.integers(1, 200)))


@pytest.mark.parametrize("kind", LAYERS)
def test_beginnings_that_end_within_a_page_and_long_ones(kind):
    model = make_model(kind)
    generator = np.random.default_rng(5)
    for shared in (255, 256, 300, 520):
        beginning = generator.integers(60, size=shared).tolist()
        middle = beginning + generator.integers(60, size=40).tolist()
        ends = [[*beginning, 7, 8], [*beginning, 9], middle + [3] * 20, middle, [*middle[:-1], 5], [2] * 30]
        check(model, ends, [2, 1, 25, 50, 1, 29], forward_tokens=128)


def test_one_path_is_enough_memory(model):
    generator = np.random.default_rng(6)
    prompts = draw(generator, 200, 20, 30)
    check(model, prompts, [1] * 20, memory_bytes=1)
    check(model, prompts, [len(prompt) - 1 for prompt in prompts], memory_bytes=1, forward_tokens=50)


def test_rows_of_logits_are_bounded(model, monkeypatch):
    from leyden.evaluate import prompt_scores as module

    monkeypatch.setattr(module, "_LOGITS_BYTES", 4 * 60 * 7)
    generator = np.random.default_rng(7)
    prompts = draw(generator, 60, 10, 30)
    check(model, prompts, [len(prompt) - 1 for prompt in prompts])


def test_answers_of_one_token_share_a_reading(model):
    prompts = [[1, *range(2, 40), answer] for answer in (41, 42, 43, 44)]
    assert prompt_tree([prompt[:-1] for prompt in prompts]).num_tokens == 39
    check(model, prompts, [1] * 4)


def test_no_prompts(model):
    assert list(prompt_scores(model, [], [])) == []
