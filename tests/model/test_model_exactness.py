"""However the tokens reach the model, it computes the same: whole, in chunks, one by one, resumed, or packed."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.model import Cache, HybridLM
from leyden.model.mixers.states import RunningState

ModelMaker = Callable[..., HybridLM]

WINDOWED = {"layer_types": ("sliding_attention", "linear_attention", "full_attention"), "sliding_window": 13}
COSFORMER2 = {"layer_types": ("cosformer2_attention", "full_attention", "cosformer2_attention")}
HGRN2 = {"layer_types": ("hgrn2_attention", "hgrn2_attention", "full_attention")}
LATENT = {
    "layer_types": ("latent_attention", "linear_attention", "latent_attention"),
    "rotary_dim": 6,
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 7,
    "qk_rope_head_dim": 6,
    "v_head_dim": 5,
    "rope_interleave": True,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 8.0}
STRETCHED = {**WINDOWED, "rope_scaling": YARN}
RING = {
    "num_attention_heads": 8,
    "lightning_activation": "none",
    "lightning_scale": "1/sqrt(d)",
    "lightning_rotary_dim": 4,
    "lightning_norm_groups": 4,
    "qk_norm": ("linear_attention", "full_attention"),
    "attn_output_gate": True,
    "embedding_multiplier": 3.0,
    "logits_scaling": 6.0,
}
"""Every option of the lightning family that crosses tokens, in one model."""
CAPPED = {**WINDOWED, "attn_logit_softcapping": 0.8, "final_logit_softcapping": 1.5}
SIGMOID = {
    "router": "sigmoid_groups",
    "n_group": 2,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 8,
    "shared_expert_gate": False,
}
AFTER = {"postnorm": False, "norm_placement": "after"}
PARALLEL = {"postnorm": False, "parallel_block": True}
FIRST_DENSE = {"mlp_types": ("dense", "experts", "dense"), "dense_intermediate_size": 20}

KINDS = pytest.mark.parametrize(
    "changes",
    [{}, STRETCHED, COSFORMER2, HGRN2, LATENT, RING, CAPPED],
    ids=["hybrid", "windowed, YaRN", "cosformer2", "hgrn2", "latent", "Ring", "soft caps"],
)

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}
"""Of the largest logit: rounding alone."""


def tokens_of(length: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(101, (rows, length), generator=torch.Generator().manual_seed(seed))


def assert_equal(given: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(given, expected, rtol=0, atol=TOLERANCE[expected.dtype] * float(expected.abs().max()))


def states(cache: Cache) -> list[torch.Tensor]:
    kept = [layer.state for layer in cache.layers if isinstance(layer, RunningState)]
    return [state for state in kept if state is not None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_attention_heads": 6, "num_local_experts": 0, "postnorm": False},
        STRETCHED,
        FIRST_DENSE,
        SIGMOID,
        AFTER,
        PARALLEL,
        COSFORMER2,
        HGRN2,
        HGRN2 | {"head_dim": 16},
        LATENT,
        RING,
        CAPPED,
    ],
)
def test_decoding_equals_prefill(random_model: ModelMaker, dtype: torch.dtype, changes: dict) -> None:
    model, tokens = random_model(dtype, **changes), tokens_of(71, rows=2)
    with torch.no_grad():
        whole_cache, cache = Cache(model.config, 2), Cache(model.config, 2)
        whole = model(tokens, cache=whole_cache)
        steps = torch.cat([model(tokens[:, t : t + 1], cache=cache) for t in range(71)], dim=1)
        assert_equal(whole, model(tokens))
        assert_equal(steps, whole)
    assert cache.length == whole_cache.length == 71
    for one, other in zip(states(cache), states(whole_cache), strict=True):
        assert_equal(one, other)


@settings(max_examples=15, deadline=None)
@given(chunks=st.lists(st.integers(1, 90), min_size=1, max_size=5))
@KINDS
def test_prefill_in_chunks_equals_prefill(random_model: ModelMaker, chunks: list[int], changes: dict) -> None:
    model, tokens = random_model(torch.float64, **changes), tokens_of(sum(chunks))
    cache = Cache(model.config)
    with torch.no_grad():
        parts = torch.cat([model(part, cache=cache) for part in tokens.split(chunks, dim=1)], dim=1)
        assert_equal(parts, model(tokens))


@pytest.mark.parametrize(
    "layer_types",
    [
        ("full_attention", "linear_attention"),
        ("linear_attention", "full_attention"),
        ("linear_attention", "sliding_attention"),
        ("full_attention", "cosformer2_attention"),
        ("full_attention", "hgrn2_attention"),
        ("linear_attention", "latent_attention"),
    ],
)
@pytest.mark.parametrize("last", [1, 3])
def test_the_last_positions_alone_equal_those_of_all(
    random_model: ModelMaker, layer_types: tuple[str, ...], last: int
) -> None:
    window = 13 if "sliding_attention" in layer_types else None
    latent = LATENT if "latent_attention" in layer_types else {}
    shape = {**latent, "layer_types": layer_types, "num_hidden_layers": 2, "sliding_window": window}
    model = random_model(torch.float64, **shape)
    tokens, whole, cache = tokens_of(80, rows=2), Cache(model.config, 2), Cache(model.config, 2)
    with torch.no_grad():
        for part in tokens[:, :70].split(35, dim=1):
            expected = model.features(part, cache=whole).hidden
            hidden = model.features(part, cache=cache, last=last).hidden
            assert hidden.shape[1] == last
            assert_equal(hidden, expected[:, -last:])
        assert_equal(model(tokens[:, 70:], cache=cache), model(tokens[:, 70:], cache=whole))


@pytest.mark.parametrize("last", [0, 6])
def test_positions_that_are_not_there(random_model: ModelMaker, last: int) -> None:
    with pytest.raises(UserError, match=f"last 1 to 5 positions .* given last={last}"):
        random_model().features(tokens_of(5), last=last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_saved_cache_resumes(random_model: ModelMaker, dtype: torch.dtype) -> None:
    model, tokens = random_model(dtype), tokens_of(97)
    cache = Cache(model.config)
    with torch.no_grad():
        model(tokens[:, :50], cache=cache)
        saved = copy.deepcopy(cache)
        first = model(tokens[:, 50:], cache=cache)
        assert saved.length == 50
        assert torch.equal(model(tokens[:, 50:], cache=saved), first)
        assert_equal(first, model(tokens)[:, 50:])


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 80), min_size=1, max_size=5))
@example(lengths=[1, 1])
@KINDS
def test_packed_documents_equal_the_same_alone(random_model: ModelMaker, lengths: list[int], changes: dict) -> None:
    check_packing(random_model(torch.float64, **changes), lengths)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shared_intermediate_size": 8, "postnorm": False},
        {"num_local_experts": 0},
        FIRST_DENSE,
        SIGMOID,
        AFTER,
        PARALLEL,
        COSFORMER2,
        HGRN2,
        HGRN2 | {"head_dim": 16},
        LATENT,
        RING,
    ],
)
def test_packed_documents_equal_the_same_alone_in_float32(random_model: ModelMaker, changes: dict) -> None:
    check_packing(random_model(**changes), [37, 1, 65, 3])


def check_packing(model: HybridLM, lengths: list[int]) -> None:
    """Logits, and the gradient of every parameter."""
    tokens, dtype = tokens_of(sum(lengths)), next(model.parameters()).dtype
    weights = torch.randn(1, sum(lengths), 101, dtype=dtype, generator=torch.Generator().manual_seed(1))
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()

    model.zero_grad()
    alone = [model(document) for document in tokens.split(lengths, dim=1)]
    (torch.cat(alone, dim=1) * weights).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    packed = model(tokens, cu_seqlens=bounds)
    (packed * weights).sum().backward()
    assert_equal(packed.detach(), torch.cat(alone, dim=1).detach())
    # A gradient may be zero (that of queries with one key to see), and rounding is that of the whole then.
    least = 1e-3 * max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        bound = 10 * TOLERANCE[dtype] * max(float(expected[name].abs().max()), least)
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=bound, msg=name)


def test_documents_do_not_see_each_other(random_model: ModelMaker) -> None:
    model, tokens = random_model(), tokens_of(60)
    bounds = torch.tensor([0, 20, 60], dtype=torch.int32)
    changed = tokens.clone()
    changed[0, :20] = (changed[0, :20] + 1) % 101
    with torch.no_grad():
        one, other = model(tokens, cu_seqlens=bounds), model(changed, cu_seqlens=bounds)
    assert torch.equal(one[:, 20:], other[:, 20:])
    assert not torch.equal(one[:, :20], other[:, :20])


@KINDS
def test_a_forward_that_raises_leaves_the_cache_as_it_was(
    random_model: ModelMaker, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    model, tokens = random_model(**changes), tokens_of(40)
    cache = Cache(model.config)
    with torch.no_grad():
        model(tokens[:, :10], cache=cache)
        before = [state.clone() for state in states(cache)]

        def fail(*_args: object) -> None:
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(model.layers[-1].mlp, "forward", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                model((tokens[:, 10:] + 1) % 101, cache=cache)
        assert cache.length == 10
        assert all(torch.equal(a, b) for a, b in zip(states(cache), before, strict=True))
        assert_equal(model(tokens[:, 10:], cache=cache), model(tokens)[:, 10:])


@pytest.mark.parametrize(
    ("shape", "said"),
    [((1, 0), "T at least 1"), ((5,), r"given \(5,\)"), ((1, 65), "65 tokens are more than the 64 positions")],
)
def test_tokens_that_do_not_fit(random_model: ModelMaker, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        random_model(max_position_embeddings=64)(torch.zeros(shape, dtype=torch.int64))


def test_a_cache_that_does_not_fit(random_model: ModelMaker) -> None:
    model, tokens = random_model(max_position_embeddings=64), tokens_of(33)
    cache, bounds = Cache(model.config), torch.tensor([0, 33])
    with torch.no_grad():
        model(tokens, cache=cache)
        with pytest.raises(UserError, match="66 tokens are more than the 64 positions"):
            model(tokens, cache=cache)
        with pytest.raises(UserError, match="the cache holds 1 sequences; given 2 rows"):
            model(tokens_of(3, rows=2), cache=cache)
        with pytest.raises(UserError, match="take no cache"):
            model(tokens, cache=cache, cu_seqlens=bounds)
        with pytest.raises(UserError, match="one row"):
            model(tokens_of(3, rows=2), cu_seqlens=torch.tensor([0, 3]))
    assert cache.length == 33


@pytest.mark.parametrize("bounds", [[0, 10], [0, 25], [5, 20], [0, 12, 8, 20], [20]])
def test_bounds_that_do_not_fit(random_model: ModelMaker, bounds: list[int]) -> None:
    with pytest.raises(UserError, match=r"cu_seqlens must rise from 0 to the row's 20 tokens"):
        random_model()(tokens_of(20), cu_seqlens=torch.tensor(bounds))


def test_packed_rows_may_be_longer_than_a_document_may(random_model: ModelMaker) -> None:
    model = random_model(max_position_embeddings=16)
    with torch.no_grad():
        logits = model(tokens_of(32), cu_seqlens=torch.tensor([0, 16, 32], dtype=torch.int32))
    assert logits.shape == (1, 32, 101)
    with pytest.raises(UserError, match="17 tokens are more than the 16 positions"):
        model(tokens_of(32), cu_seqlens=torch.tensor([0, 17, 32]))
