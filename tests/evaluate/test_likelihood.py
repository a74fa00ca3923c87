"""bits_per_byte equals a document-by-document float64 computation, however documents share a forward pass."""

import copy
import math

import pytest
import torch

from leyden.core.errors import UserError
from leyden.evaluate import bits_per_byte
from leyden.model import HybridLM

TEXTS = ["def f(x):\n    return x\n", "", "zażółć gęślą jaźń", "a", "x = 1\n" * 31, "The jar keeps lightning."]


def slow_nats(model: HybridLM, tokenizer, text: str, context_tokens: int = 10**9) -> float:
    """Every window of one document whole, in float64, with plain logits."""
    model = copy.deepcopy(model).double().eval()
    targets = [*text.encode(), tokenizer.eod_id]
    nats = 0.0
    for start in range(0, len(targets), context_tokens):
        labels = targets[start : start + context_tokens]
        with torch.no_grad():
            logits = model(torch.tensor([[tokenizer.bos_id, *labels[:-1]]]))[0]
        nats -= logits.log_softmax(-1).gather(1, torch.tensor(labels)[:, None]).sum().item()
    return nats


@pytest.mark.parametrize("forward_tokens", [7, 50, 8192])
@pytest.mark.parametrize("context_tokens", [None, 5, 64])
def test_equals_a_slow_computation(model, tokenizer, forward_tokens, context_tokens):
    found = bits_per_byte(model, tokenizer, TEXTS, context_tokens=context_tokens, forward_tokens=forward_tokens)
    nats = sum(slow_nats(model, tokenizer, text, context_tokens or 10**9) for text in TEXTS)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found.num_bytes == num_bytes
    assert found.num_tokens == num_bytes + len(TEXTS)
    assert found.num_documents == len(TEXTS)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert found.bytes_per_token == pytest.approx(num_bytes / (num_bytes + len(TEXTS)))


def test_order_does_not_matter(model, tokenizer):
    forward = bits_per_byte(model, tokenizer, TEXTS, forward_tokens=40).nats
    backward = bits_per_byte(model, tokenizer, TEXTS[::-1], forward_tokens=40).nats
    assert forward == pytest.approx(backward, rel=1e-6)


def test_windows_change_the_result(model, tokenizer):
    whole = bits_per_byte(model, tokenizer, TEXTS).nats
    assert bits_per_byte(model, tokenizer, TEXTS, context_tokens=4).nats != pytest.approx(whole, rel=1e-5)


def test_a_document_beyond_the_models_positions_is_cut(model, tokenizer):
    text = "lightning " * 90  # 901 tokens, and the model has 400 positions
    found = bits_per_byte(model, tokenizer, [text], forward_tokens=128).nats
    assert found == pytest.approx(slow_nats(model, tokenizer, text, 400), rel=1e-5)


def test_the_model_is_left_in_its_mode_and_evaluated_without_drops(model, tokenizer):
    dropless = bits_per_byte(model, tokenizer, TEXTS).nats
    training = copy.deepcopy(model).train()
    assert bits_per_byte(training, tokenizer, TEXTS).nats == dropless
    assert training.training


@pytest.mark.parametrize("documents", [[], ["", ""]])
def test_no_text_is_the_users_mistake(model, tokenizer, documents):
    with pytest.raises(UserError, match="hold no bytes"):
        bits_per_byte(model, tokenizer, documents)


def test_no_context_is_the_users_mistake(model, tokenizer):
    with pytest.raises(UserError, match="context_tokens must be at least 1"):
        bits_per_byte(model, tokenizer, ["a"], context_tokens=0)
