"""The native decoding step against the model itself."""

from collections.abc import Callable

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import Cache, HybridLM, NativeDecoder
from leyden.ops import native
from leyden.serve import Engine, Sampling

needs_compiler = pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler here")

SHAPES = [
    {},
    {"num_local_experts": 0},
    {"postnorm": False, "mlp_beta_factor": 0.5, "linear_attn_beta_factor": 0.7, "full_attn_alpha_factor": 1.3},
    {"num_attention_heads": 3, "num_key_value_heads": 3, "rotary_dim": 16, "head_dim": 32, "hidden_size": 48},
    {"num_attention_heads": 4, "num_key_value_heads": 2, "rotary_dim": 0, "num_experts_per_tok": 3},
    {"tie_word_embeddings": True, "vocab_size": 301, "num_experts_per_tok": 1, "intermediate_size": 80},
]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_steps_equal_the_forward_in_float32(
    make_model: Callable[..., HybridLM], shape: dict[str, object], num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt through the model, then more tokens than the key buffers first had room for, and a block of keys."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    model = make_model(**shape)
    tokens = torch.randint(0, 290, (1, 150), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(tokens)[0, 3:]
        cache = Cache(model.config)
        model(tokens[:, :3], cache=cache)
        decoder = NativeDecoder(model)
        logits = torch.stack([decoder.step(int(token), cache) for token in tokens[0, 3:]])
        assert cache.length == 150
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-4)
        # The model reads on from what the native steps left.
        after = model(tokens[:, :5], cache=cache)
        torch.testing.assert_close(after, model(torch.cat([tokens, tokens[:, :5]], 1))[:, -5:], rtol=1e-4, atol=2e-4)


@needs_compiler
def test_bfloat16_steps_are_nearer_to_float32_than_the_plain_forward(make_model: Callable[..., HybridLM]) -> None:
    model = make_model().to(torch.bfloat16)
    wide = make_model()
    wide.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 290, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, plain = wide(tokens)[0, 1:], model(tokens)[0, 1:]
        cache = Cache(model.config)
        model(tokens[:, :1], cache=cache)
        decoder = NativeDecoder(model)
        logits = torch.stack([decoder.step(int(token), cache) for token in tokens[0, 1:]])
    assert (logits - exact).norm() < (plain - exact).norm()
    assert (plain - exact).norm() < 0.1 * exact.norm()


@needs_compiler
def test_both_decoders_generate_the_same(model: HybridLM) -> None:
    sampling = Sampling(max_tokens=50, seed=2)
    prompts = [[1, 2, 3], [9]]
    native = Engine(model, decoder="native").generate(prompts, sampling)
    plain = Engine(model, decoder="torch").generate(prompts, sampling)
    assert [c.tokens for c in native] == [c.tokens for c in plain]


@needs_compiler
def test_new_weights_count_from_the_next_context_on(make_model: Callable[..., HybridLM]) -> None:
    model = make_model()
    engine = Engine(model, decoder="native")
    sampling = Sampling(max_tokens=20, temperature=0)
    before = engine.generate([[1, 2, 3]], sampling)
    model.load_state_dict({name: value.flip(0) for name, value in model.state_dict().items()}, assign=True)
    after = engine.generate([[1, 2, 3]], sampling)
    assert before[0].tokens != after[0].tokens
    assert after[0].tokens == Engine(model, decoder="torch").generate([[1, 2, 3]], sampling)[0].tokens


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({"shared_intermediate_size": 16}, torch.float32, "shared expert"),
        ({"intermediate_size": 24}, torch.float32, "multiples of 16"),
        ({}, torch.float64, "float64"),
    ],
)
def test_what_it_does_not_cover_is_said(
    make_model: Callable[..., HybridLM], changes: dict[str, object], dtype: torch.dtype, reason: str
) -> None:
    model = make_model(**changes).to(dtype)
    with pytest.raises(UserError, match=f"native.*{reason}.*'torch'"):
        Engine(model, decoder="native").generate([[1]])
    assert len(Engine(model).generate([[1]], Sampling(max_tokens=3))[0].tokens) == 3


@pytest.mark.parametrize(("compiler", "reason"), [("no-such-compiler", "no C.. compiler"), ("false", "false failed")])
def test_a_machine_without_a_compiler_says_so_and_decodes_in_pytorch(
    model: HybridLM, monkeypatch: pytest.MonkeyPatch, compiler: str, reason: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    native.load.cache_clear()
    try:
        with pytest.raises(UserError, match=reason):
            Engine(model, decoder="native").generate([[1]])
        assert len(Engine(model).generate([[1]], Sampling(max_tokens=3))[0].tokens) == 3
    finally:
        native.load.cache_clear()
