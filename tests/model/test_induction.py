"""The initialization that looks up: before any training, what followed a token is foretold where it is met again."""

import functools
from typing import Any

import numpy as np
import pytest
import torch

from leyden.core.errors import UserError
from leyden.evaluate.tasks.mqar import recall_sequence
from leyden.model import HybridLM, ModelConfig
from leyden.model.induction import QUIET, looking_layers
from leyden.model.initialization import initial_weight

SHAPE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "rotary_dim": 8,
    "intermediate_size": 64,
    "num_local_experts": 0,
    "tie_word_embeddings": True,
    "initialization": "induction",
}
LINEAR = ("linear_attention", "hgrn2_attention", "cosformer2_attention")


def config(first: str, last: str = "full_attention", **changes: Any) -> ModelConfig:
    return ModelConfig.parse({**SHAPE, "layer_types": [first] * 3 + [last], **changes}, "test")


def found(model: HybridLM) -> float:
    """The share of 200 tokens, each met a second time, from which the even heads of the last layer, a softmax layer,
    look at what followed the first time, by their dims that do not turn."""
    shape, generator, picked = model.config, torch.Generator().manual_seed(5), torch.arange(200)
    H, K = shape.num_attention_heads, shape.head_dim
    rows = torch.stack([torch.randperm(256, generator=generator)[:32] for _ in range(200)])
    asked = torch.randint(4, 28, (200,), generator=generator)
    tokens = torch.cat([rows, rows[picked, asked][:, None]], dim=1)
    projected: dict[str, torch.Tensor] = {}
    for name in ("q_proj", "k_proj"):
        hook = functools.partial(lambda name, module, given, out: projected.update({name: out}), name)
        getattr(model.layers[-1].self_attn, name).register_forward_hook(hook)
    with torch.inference_mode():
        model.eval().features(tokens)
    q, k = (projected[name].view(200, -1, H, K)[..., ::2, shape.rotary_dim :] for name in ("q_proj", "k_proj"))
    scores = torch.einsum("nhk,nthk->nt", q[:, -1], k)
    return (scores.argmax(1) == asked + 1).float().mean().item()


@pytest.mark.parametrize(("kind", "least"), [(LINEAR[0], 0.3), (LINEAR[1], 0.12), (LINEAR[2], 0.6)])
def test_what_followed_before_is_looked_at_without_training(kind: str, least: float) -> None:
    wide: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "rotary_dim": 32}
    assert found(HybridLM(config(kind, **wide), 0)) > least
    assert found(HybridLM(config(kind, initialization="xavier", **wide), 0)) < 0.08


@pytest.mark.parametrize("first", ["full_attention", "sliding_attention"])
def test_a_first_layer_that_tells_distances_lays_an_exact_circuit(first: str) -> None:
    wide: dict[str, Any] = {"hidden_size": 128, "head_dim": 32, "rotary_dim": 16}
    wide["layer_types"] = [first, "linear_attention", "linear_attention", "full_attention"]
    wide["sliding_window"] = 8 if first == "sliding_attention" else None
    assert found(HybridLM(ModelConfig.parse({**SHAPE, **wide}, "test"), 0)) > 0.8
    wide["initialization"] = "xavier"
    assert found(HybridLM(ModelConfig.parse({**SHAPE, **wide}, "test"), 0)) < 0.08


def test_all_tokens_are_equally_long_where_they_are_compared() -> None:
    """So that no other token matches one better than itself does; and what is looked up is the token foretold."""
    shape = config("full_attention", vocab_size=4096, hidden_size=128, head_dim=32, tie_word_embeddings=False)
    model = HybridLM(shape, 0)
    tokens = model.embed_tokens.weight[:, :60].unflatten(1, (15, 4))
    torch.testing.assert_close(tokens.norm(dim=2), tokens.norm(dim=2).mean().expand(4096, 15))
    for layer in looking_layers(shape):
        read, write = (model.get_parameter(f"layers.{layer}.self_attn.{name}.weight") for name in ("v_proj", "o_proj"))
        written = (write @ read).T[:63, :63]  # from a token to what is foretold
        foretold = model.embed_tokens.weight[:, :63] @ written @ model.lm_head.weight[:, :63].T
        assert (foretold.argmax(1) == torch.arange(4096)).float().mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*LINEAR, "full_attention"])
@pytest.mark.parametrize("initialization", ["induction", "xavier"])
def test_a_model_learns_to_recall_pairs_within_a_hundred_steps(kind: str, initialization: str) -> None:
    model, draws = HybridLM(config(kind, initialization=initialization), 0), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(100):
        loss, _ = loss_and_share(model, draws)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, (step + 1) / 50)
        optimizer.step()
    with torch.no_grad():
        share = sum(loss_and_share(model, draws)[1] for _ in range(8)) / 8
    assert share > 0.6 if initialization == "induction" else share < 0.2


def loss_and_share(model: HybridLM, draws: np.random.Generator) -> tuple[torch.Tensor, float]:
    """Of 16 new sequences of eight pairs in 64 tokens: the mean loss of the answers, and the share that is right."""
    made = [recall_sequence(np.arange(1, 256), 64, 8, draws) for _ in range(16)]
    tokens = torch.from_numpy(np.stack([one.tokens for one in made]))
    answers = torch.zeros_like(tokens, dtype=torch.bool)
    for row, one in enumerate(made):
        answers[row, one.answers - 1] = True
    labels = tokens[:, 1:][answers[:, :-1]]
    logits = model.logits(model.features(tokens).hidden)[answers]
    return torch.nn.functional.cross_entropy(logits, labels), (logits.argmax(-1) == labels).float().mean().item()


@pytest.mark.parametrize("kind", [*LINEAR, "full_attention", "sliding_attention"])
@pytest.mark.parametrize("head_dim", [16, 48])
def test_every_weight_is_filled_and_the_seed_decides_it(kind: str, head_dim: int) -> None:
    window: dict[str, Any] = {"sliding_window": 8} if kind == "sliding_attention" else {}
    shape = config(kind, num_key_value_heads=2, head_dim=head_dim, **window)
    one, same, other = HybridLM(shape, 3), HybridLM(shape, 3), HybridLM(shape, 4)
    for name, weight in one.named_parameters():
        assert torch.isfinite(weight).all(), name
        assert torch.equal(weight, same.get_parameter(name)), name
        assert weight.ndim == 1 or not torch.equal(weight, other.get_parameter(name)), name


def test_layers_outside_of_the_circuit_are_quiet() -> None:
    shape = config("linear_attention")
    usual = shape.model_copy(update={"initialization": "xavier"})
    for name in ("layers.1.self_attn.out_proj.weight", "layers.3.mlp.down_proj.weight"):
        size = (64, 64)
        assert torch.equal(initial_weight(name, size, shape, 0), QUIET * initial_weight(name, size, usual, 0))
    name = "layers.1.self_attn.qkv_proj.weight"
    assert torch.equal(initial_weight(name, (192, 64), shape, 0), initial_weight(name, (192, 64), usual, 0))


def test_some_experts_are_those_of_all() -> None:
    shape = config("linear_attention", num_local_experts=4, num_experts_per_tok=2)
    name = "layers.2.mlp.experts.down_proj"
    whole = initial_weight(name, (4, 64, 64), shape, 0)
    assert torch.equal(initial_weight(name, (4, 64, 64), shape, 0, experts=(1, 3)), whole[1:3])


def test_where_tokens_are_looked_up() -> None:
    assert looking_layers(config("linear_attention")) == [3]
    assert looking_layers(config("linear_attention", "linear_attention")) == [3]
    assert looking_layers(config("full_attention")) == [1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [{"postnorm": False}, {"num_hidden_layers": 1, "layer_types": ["full_attention"]}, {"hidden_size": 3}],
)
def test_a_model_without_room_for_the_circuit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="initialization"):
        ModelConfig.parse({**SHAPE, **changes}, "test")
