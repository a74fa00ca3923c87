"""The native decoding step against the model itself; and its bits, which no batch and no thread changes."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import PAGE, Cache, HybridLM, NativeDecoder, Pools, Ranks
from leyden.model.mixers.softmax import SoftmaxAttention
from leyden.model.norm import RMSNorm
from leyden.model.quantized import quantize
from leyden.ops import native
from leyden.ops.decode import UnavailableError
from leyden.serve import Engine, Sampling
from leyden.serve.runner import Reading, Runner

needs_compiler = pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler here")

WINDOWS = {"layer_types": ("sliding_attention", "linear_attention", "full_attention", "sliding_attention")}
LINEAR = {"layer_types": ("hgrn2_attention", "cosformer2_attention", "full_attention", "hgrn2_attention")}
DENSE_AND_EXPERTS = {"mlp_types": ("dense", "dense", "experts", "experts"), "dense_intermediate_size": 64}
SIGMOIDS = {
    "router": "sigmoid_groups",
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "shared_intermediate_size": 48,
    "shared_expert_gate": False,
}
SHAPES = [
    {},
    {"num_local_experts": 0, "dense_intermediate_size": 64},
    {"postnorm": False, "mlp_beta_factor": 0.5, "linear_attn_beta_factor": 0.7, "full_attn_alpha_factor": 1.3},
    {"num_attention_heads": 3, "num_key_value_heads": 3, "rotary_dim": 16, "head_dim": 32, "hidden_size": 48},
    {"num_attention_heads": 4, "num_key_value_heads": 2, "rotary_dim": 0, "num_experts_per_tok": 3},
    {"tie_word_embeddings": True, "vocab_size": 301, "num_experts_per_tok": 1, "intermediate_size": 80},
    {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128}, "head_dim": 32},
    {"shared_intermediate_size": 48, "num_attention_heads": 7, "head_dim": 80},
    {**WINDOWS, "sliding_window": 197, "num_attention_heads": 4, "num_key_value_heads": 2},
    {**WINDOWS, "sliding_window": 3, "head_dim": 32, "rotary_dim": 32},
    {**WINDOWS, "sliding_window": 300, "shared_intermediate_size": 48, **DENSE_AND_EXPERTS},
    {"mlp_types": ("experts", "dense", "experts", "dense"), "shared_intermediate_size": 80},
    SIGMOIDS,
    {
        **SIGMOIDS,
        "group_score": "max",
        "norm_topk_prob": False,
        "shared_intermediate_size": 0,
        "shared_expert_gate": True,
    },
    {**SIGMOIDS, **DENSE_AND_EXPERTS, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 5},
    LINEAR,
    {**LINEAR, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 80, "rotary_dim": 16, "postnorm": False},
]
FAMILY = {
    "lightning_activation": "none",
    "lightning_scale": "1/sqrt(d)",
    "lightning_rotary_dim": 16,
    "lightning_norm_groups": 2,
    "qk_norm": ("linear_attention", "full_attention"),
    "attn_output_gate": True,
    "embedding_multiplier": 12.0,
    "logits_scaling": 6.0,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""The options of the lightning family, each of which some model has."""
SHAPES += [
    FAMILY,
    {**FAMILY, "head_dim": 32, "rotary_dim": 0, "lightning_rotary_dim": 32, "lightning_norm_groups": 1,
     "postnorm": False},
    {**FAMILY, **WINDOWS, "sliding_window": 7, "qk_norm": ("sliding_attention",), "lightning_norm_groups": 4},
    {"lightning_rotary_dim": 8, "qk_norm": ("linear_attention",), "num_attention_heads": 3, "head_dim": 80,
     "num_key_value_heads": 3, "rotary_dim": 16, "lightning_scale": "1/d"},
    {**LINEAR, "num_attention_heads": 4, "num_key_value_heads": 1, "lightning_norm_groups": 2,
     "attn_output_gate": True},
    {**FAMILY, **SIGMOIDS},
]  # fmt: skip
KINDS = ["float32", "bfloat16", "int8", "int8 head"]


def _of_kind(model: HybridLM, kind: str) -> HybridLM:
    """``model``, changed in place; 8 bits are held by a model that computes in bfloat16."""
    if kind == "float32":
        return model
    model = model.to(torch.bfloat16)
    return model if kind == "bfloat16" else quantize(model, head=kind == "int8 head")


def _pools(model: HybridLM, dtype: torch.dtype, num_pages: int = 24) -> Pools:
    """Nothing may be read that was not written."""
    pools = Pools(model.config, 16, num_pages, dtype=dtype)
    for memory in (*pools.slots.values(), *pools.pages.values()):
        memory.fill_(torch.nan)
    return pools


def _copy(pools: Pools, source: Pools) -> Pools:
    for to, of in ((pools.slots, source.slots), (pools.pages, source.pages)):
        for name, memory in to.items():
            memory.copy_(of[name])
    return pools


def _text(length: int, seed: int, vocab: int = 290) -> list[int]:
    return torch.randint(vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_steps_equal_those_of_the_modules(
    make_model: Callable[..., HybridLM], shape: dict[str, object], num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind prompts and from nothing, over the end of a page, with drafts that leave a state behind each token."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    model = make_model(**shape)
    for name, parameter in model.named_parameters():
        if name.endswith("expert_bias"):
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    modules = Runner(model, _pools(model, torch.float32))
    text, pages = _text(300, 0), [3, 1]
    modules.run([], [Reading(text[:252], 0, pages, [0]), Reading(text[:9], 0, [9], [1])])
    step = NativeDecoder(model, _copy(_pools(model, torch.float32), modules.pools))
    for i in range(4):
        decodes = [
            Reading(text[252 + 2 * i :][:2], 252 + 2 * i, pages, [0, 4, 0], wanted=2),
            Reading([text[i]], 9 + i, [9], [1, 1]),
            Reading([text[i]], i, [10], [2, 2], wanted=i % 2),
        ]
        torch.testing.assert_close(step.run(decodes), modules.run(decodes, []), rtol=1e-4, atol=5e-5)


@needs_compiler
@pytest.mark.parametrize("shape", [{}, FAMILY], ids=["", "the lightning family"])
def test_logits_are_as_near_to_float64_as_those_of_the_modules(
    make_model: Callable[..., HybridLM], shape: dict[str, object]
) -> None:
    model, text = make_model(**shape), _text(60, 1)
    step, modules = NativeDecoder(model, _pools(model, torch.float32)), Runner(model, _pools(model, torch.float32))
    decodes = [Reading([token], i, [0], [0, 0]) for i, token in enumerate(text)]
    ours, plain = (torch.cat([run([d]) for d in decodes]) for run in (step.run, lambda d: modules.run(d, [])))
    with torch.inference_mode():
        exact = make_model(**shape).double()(torch.tensor([text]))[0]
    assert (ours - exact).norm() < 1.5 * (plain - exact).norm()


@needs_compiler
def test_slow_heads_forget_at_their_rate(make_model: Callable[..., HybridLM]) -> None:
    """A decay rounded to float32 would be off by up to 3e-8 at every token, which is 1.2e-4 of these states."""
    shape = {"num_hidden_layers": 1, "layer_types": ("linear_attention",), "num_local_experts": 0}
    model, exact = (make_model(**shape, num_attention_heads=4) for _ in range(2))
    for each in (model, exact):
        each.layers[0].self_attn.slopes.values.copy_(torch.tensor([2.9e-8, 8.9e-8, 4.95e-5, 0.6]))
    text, pools, cache = _text(4000, 0), _pools(model, torch.float32), Cache(model.config, batch_size=1)
    NativeDecoder(model, pools).run([Reading(text, 0, [], [0] * 4001)])
    with torch.inference_mode():
        exact.double()(torch.tensor([text]), cache=cache)
    for ours, theirs in zip(pools.slots["state"][0, 0].double(), cache.layers[0].state[0], strict=True):
        assert (ours - theirs).norm() < 5e-6 * theirs.norm()


@needs_compiler
def test_gates_near_1_forget_at_their_rate(make_model: Callable[..., HybridLM]) -> None:
    """As above, of HGRN2: gates of 1 - 5e-7 in float32 would be off by up to 3e-8 at every token."""
    shape = {"num_hidden_layers": 1, "layer_types": ("hgrn2_attention",), "num_local_experts": 0}
    model, exact = (make_model(**shape) for _ in range(2))
    for each in (model, exact):
        each.layers[0].self_attn.lower_bound = 1 - 1e-6
    text, pools, cache = _text(4000, 0), _pools(model, torch.float32), Cache(model.config, batch_size=1)
    NativeDecoder(model, pools).run([Reading(text, 0, [], [0] * 4001)])
    with torch.inference_mode():
        exact.double()(torch.tensor([text]), cache=cache)
    ours, theirs = pools.slots["hgrn2_state"][0, 0].double(), cache.layers[0].state[0]
    assert (ours - theirs).norm() < 5e-6 * theirs.norm()


@needs_compiler
@pytest.mark.parametrize(("kind", "positions"), [("hgrn2_attention", 0), ("cosformer2_attention", 1_000_000)])
def test_other_kinds_of_linear_attention_are_read_as_in_float64(
    make_model: Callable[..., HybridLM], kind: str, positions: int
) -> None:
    """Logits differ from those of the whole model in float64 by rounding, no more than those of the modules do; behind
    a million tokens, which turn cosFormer2's heads by large angles."""
    shape = {"layer_types": (kind,) * 4, "num_local_experts": 0, "dense_intermediate_size": 64}
    model, exact = (make_model(**shape) for _ in range(2))
    text, generator = _text(24, 1), torch.Generator().manual_seed(0)
    modules = Runner(model, _pools(model, torch.float32))
    for states in modules.pools.slots.values():
        states.normal_(0, 0.1, generator=generator)
    pools = _copy(_pools(model, torch.float32), modules.pools)
    wide = Runner(exact.double(), _copy(_pools(exact, torch.float64), modules.pools))
    pages = [0] * (positions // PAGE + 1)
    decodes = [Reading([token], positions + i, pages, [0, 0]) for i, token in enumerate(text)]
    step = NativeDecoder(model, pools)
    ours = torch.cat([step.run([decode]) for decode in decodes])
    plain, theirs = (torch.cat([runner.run([decode], []) for decode in decodes]) for runner in (modules, wide))
    assert (ours - theirs).norm() < 1.5 * (plain - theirs).norm()


@needs_compiler
def test_bfloat16_steps_are_nearer_to_float32_than_the_plain_forward(make_model: Callable[..., HybridLM]) -> None:
    model, text = make_model().to(torch.bfloat16), _text(60, 0)
    wide = make_model()
    wide.load_state_dict(model.state_dict())
    step = NativeDecoder(model, _pools(model, torch.bfloat16))
    with torch.inference_mode():
        exact, plain = wide(torch.tensor([text]))[0], model(torch.tensor([text]))[0]
    logits = step.run([Reading(text, 0, [5], [0, *range(1, 13), *[1] * 48], wanted=60)])
    assert (logits - exact).norm() < (plain - exact).norm()
    assert (plain - exact).norm() < 0.1 * exact.norm()


@needs_compiler
@pytest.mark.parametrize("head", [False, True], ids=["bf16 head", "int8 head"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], SHAPES[7], SHAPES[10], LINEAR, FAMILY])
def test_int8_weights(make_model: Callable[..., HybridLM], shape: dict[str, object], head: bool) -> None:
    """In float32, where the modules and the step differ by rounding alone; and in bfloat16."""
    text = _text(40, 0)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.15)):
        model = quantize(make_model(**shape).to(dtype), head=head)
        step, modules = NativeDecoder(model, _pools(model, dtype)), Runner(model, _pools(model, dtype))
        for i in range(0, 40, 2):
            decodes = [Reading(text[i : i + 2], i, [0], [0, 1, 0], wanted=2), Reading([text[i]], i // 2, [2], [3, 3])]
            expected = modules.run(decodes, [])
            assert (step.run(decodes) - expected).norm() < tolerance * expected.norm()


@needs_compiler
@pytest.mark.parametrize(
    "shape",
    [{}, {**WINDOWS, "sliding_window": 7, **DENSE_AND_EXPERTS}, LINEAR, FAMILY],
    ids=["", "windows", "cosFormer2 and HGRN2", "the lightning family"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_no_batch_and_no_thread_changes_a_bit(
    make_model: Callable[..., HybridLM], kind: str, shape: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sequence alone, token by token; and in random company, order and drafts, with 1 to 3 threads."""
    model = make_model(**{"num_attention_heads": 4, "vocab_size": 301, "shared_intermediate_size": 16, **shape})
    model = _of_kind(model, kind)
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    texts = [_text(24, seed) for seed in range(7)]
    alone, together = (NativeDecoder(model, _pools(model, dtype)) for _ in range(2))
    expected = [
        torch.cat([alone.run([Reading([token], i, [s], [s, s])]) for i, token in enumerate(text)])
        for s, text in enumerate(texts)
    ]
    rng, read = random.Random(0), [0] * 7
    while min(read) < 24:
        threads = rng.randint(1, 3)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        decodes, spans = [], []
        for s in rng.sample(range(7), rng.randint(1, 7)):
            start, count = read[s], min(rng.randint(1, 6), 24 - read[s])
            if count:
                slots = [s, *rng.sample(range(7, 16), count - 1), s] if s == 0 else [s] * (count + 1)
                wanted = rng.randint(0, count)
                decodes.append(Reading(texts[s][start : start + count], start, [s], slots, wanted))
                spans.append((s, start + count - wanted, start + count))
                read[s] += count
        if decodes:
            assert torch.equal(together.run(decodes), torch.cat([expected[s][a:b] for s, a, b in spans]))


@needs_compiler
@pytest.mark.parametrize("window", [1, 64, PAGE, 3 * PAGE - 5])
def test_windows_are_read_as_in_float64(make_model: Callable[..., HybridLM], window: int) -> None:
    """From nothing, past the end of the window, against the whole model; a logit differs by rounding alone."""
    kinds = ("sliding_attention", "linear_attention", "sliding_attention", "full_attention")
    model, exact = (make_model(layer_types=kinds, sliding_window=window) for _ in range(2))
    text = _text(window + 70, 3)
    step = NativeDecoder(model, _pools(model, torch.float32))
    parts = [Reading(text[a : a + 5], a, [3, 1, 7, 5], [2] * 6, wanted=5) for a in range(0, window + 66, 5)]
    ours = torch.cat([step.run([part]) for part in parts])
    with torch.inference_mode():
        theirs = exact.double()(torch.tensor([text]))[0][: len(ours)]
        plain = model(torch.tensor([text]))[0][: len(ours)]
    assert (ours - theirs).norm() < 1.5 * (plain - theirs).norm()


@needs_compiler
@pytest.mark.parametrize("length", [PAGE - 1, PAGE, 64 * PAGE, 70 * PAGE + 3])
def test_long_contexts_are_read_in_pieces(
    make_model: Callable[..., HybridLM], length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a piece has several pages; with keys so large that their weights differ by far."""
    model = make_model(num_attention_heads=6, num_key_value_heads=2, head_dim=80)
    modules = Runner(model, _pools(model, torch.float32, num_pages=80))
    generator = torch.Generator().manual_seed(0)
    for deviation, memories in ((0.3, modules.pools.slots), (3, modules.pools.pages)):
        for memory in memories.values():
            memory.normal_(0, deviation, generator=generator)
    pools = _copy(_pools(model, torch.float32, num_pages=80), modules.pools)
    step = NativeDecoder(model, pools)
    decodes = [
        Reading([5, 6], length, (1 + torch.randperm(79, generator=generator)).tolist(), [0, 1, 0], wanted=2),
        Reading([7], 3, [0], [2, 2]),
    ]
    logits = []
    for threads in (1, 20):  # a thread takes all key heads of a piece, or one
        _copy(pools, modules.pools)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        logits.append(step.run(decodes))
    assert torch.equal(*logits)
    torch.testing.assert_close(logits[0], modules.run(decodes, []), rtol=1e-4, atol=2e-4)


@needs_compiler
def test_steps_that_follow_each_other_have_the_bits_of_single_ones(make_model: Callable[..., HybridLM]) -> None:
    """Over the end of a page, at which the next step is prepared anew; and with a state that moved to another slot."""
    model = make_model(**WINDOWS, sliding_window=19)
    alone, going = (NativeDecoder(model, _pools(model, torch.float32)) for _ in range(2))
    texts, prepared = [_text(270, 5), _text(270, 6)], 0
    for i in range(268):
        decodes = [
            Reading([texts[0][i]], i, [3, 5][: 1 + i // PAGE], [0 if i == 0 else 1, 1]),
            Reading([texts[1][i]], i, [2, 9], [2, 2]),
        ]
        if going.goes_on:
            logits = going.run_next([text[i] for text in texts])
        else:
            prepared, logits = prepared + 1, going.run(decodes)
        assert torch.equal(logits, alone.run(decodes))
    assert prepared == 2


@needs_compiler
def test_what_cannot_go_on_is_refused(model: HybridLM) -> None:
    pools = _pools(model, torch.float32)
    step, plain = NativeDecoder(model, pools), Runner(model, pools)
    with pytest.raises(ValueError, match="use run"):
        step.run_next([])
    with pytest.raises(ValueError, match="only a native step"):
        plain.run_next([1])
    step.run([Reading([1, 2], 0, [0], [0, 0, 0])])
    assert not step.goes_on, "several tokens were read"
    step.run([Reading([1], 0, [0], [0, 0])])
    with pytest.raises(ValueError, match="size"):
        step.run_next([1, 2])
    assert not step.goes_on, "a step failed"
    step.run([Reading([1], 0, [0], [0, 0])])
    with pytest.raises(ValueError, match="not in the vocabulary"):
        step.run_next([10**6])
    step.run([Reading([1], PAGE - 1, [0], [0, 0])])
    with pytest.raises(ValueError, match="use run"):
        step.run_next([1])


@needs_compiler
def test_the_runner_gives_decodes_to_the_step_and_prompts_to_the_modules(model: HybridLM) -> None:
    text, pools = _text(300, 2), _pools(model, torch.float32)
    runner = Runner(model, pools, NativeDecoder(model, pools))
    runner.run([], [Reading(text[:256], 0, [0, 1], [0])])
    both = runner.run([Reading([4], 256, [0, 1], [0, 1])], [Reading(text, 0, [4, 5], [3])])
    again = runner.run([Reading([4], 256, [0, 1], [0, 2])], [])
    cache = Cache(model.config)
    with torch.inference_mode():
        model(torch.tensor([text[:256]]), cache=cache)
        expected = [model(torch.tensor([[4]]), cache=cache)[0], model(torch.tensor([text]))[0, -1:]]
    torch.testing.assert_close(both, torch.cat(expected), rtol=1e-4, atol=2e-4)
    assert torch.equal(both[:1], again)


@needs_compiler
@pytest.mark.parametrize("shape", [{}, FAMILY], ids=["", "the lightning family"])
def test_both_decoders_generate_the_same(make_model: Callable[..., HybridLM], shape: dict[str, object]) -> None:
    model = make_model(**shape)
    sampling = Sampling(max_tokens=50, seed=2)
    prompts = [[1, 2, 3], [9]]
    native = Engine(model, decoder="native").generate(prompts, sampling)
    plain = Engine(model, decoder="torch").generate(prompts, sampling)
    assert [c.tokens for c in native] == [c.tokens for c in plain]


@needs_compiler
def test_new_weights_count_from_the_next_text_on(make_model: Callable[..., HybridLM]) -> None:
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
        ({"intermediate_size": 24}, torch.float32, "multiples of 16"),
        ({}, torch.float64, "float64"),
        ({"postnorm": False, "parallel_block": True}, torch.float32, "parallel blocks"),
        ({"postnorm": False, "norm_placement": "after"}, torch.float32, "norms after"),
        ({"mlp_types": ("dense", *["experts"] * 3), "dense_intermediate_size": 24}, torch.float32, "multiples of 16"),
    ],
)
def test_what_it_does_not_cover_is_said(
    make_model: Callable[..., HybridLM], changes: dict[str, object], dtype: torch.dtype, reason: str
) -> None:
    model = make_model(**changes).to(dtype)
    with pytest.raises(UserError, match=f"native.*{reason}.*'torch'"):
        Engine(model, decoder="native").generate([[1]])
    assert len(Engine(model).generate([[1]], Sampling(max_tokens=3))[0].tokens) == 3


class _Twice(SoftmaxAttention):
    """A softmax attention that computes something else."""

    def forward(self, *arguments: Any) -> tuple[torch.Tensor, Any]:
        out, state = super().forward(*arguments)
        return 2 * out, state


class _Wider(RMSNorm):
    """A norm that the step does not know."""


def test_what_it_does_not_know_by_name_is_refused(make_model: Callable[..., HybridLM]) -> None:
    """Though it is made of what the step knows; and an engine goes on without, having said so."""
    model = make_model()
    model.layers[1].set_submodule("self_attn", _Twice(model.config))
    with pytest.raises(UnavailableError, match=r"no body for _Twice \(of layers\.1\.self_attn\)"):
        NativeDecoder(model, _pools(model, torch.float32))
    assert len(Engine(model).generate([[1]], Sampling(max_tokens=3))[0].tokens) == 3
    model = make_model()
    model.set_submodule("norm", _Wider(model.config.hidden_size, 1e-5))
    with pytest.raises(UnavailableError, match=r"no body for _Wider \(of norm\)"):
        NativeDecoder(model, _pools(model, torch.float32))
    model = make_model()
    model.layers[0].self_attn.scan = lambda *arguments: arguments
    with pytest.raises(UnavailableError, match=r"layers\.0\.self_attn has another scan"):
        NativeDecoder(model, _pools(model, torch.float32))


@needs_compiler
def test_models_that_it_would_read_wrongly_are_refused(make_model: Callable[..., HybridLM]) -> None:
    class Several(Ranks):
        pass

    model = make_model()
    with pytest.raises(UnavailableError, match=r"a weight is torch\.float32, where the model computes in torch.bfl"):
        NativeDecoder(model, _pools(model, torch.bfloat16))
    model.ranks = Several()
    with pytest.raises(UnavailableError, match="several ranks"):
        NativeDecoder(model, _pools(model, torch.float32))


@pytest.mark.parametrize(("compiler", "reason"), [("no-such-compiler", "no C.. compiler"), ("false", "false failed")])
def test_a_machine_without_a_compiler_says_so_and_decodes_in_pytorch(
    model: HybridLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str, reason: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where nothing was compiled before
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    native.load.cache_clear()
    try:
        with pytest.raises(UserError, match=reason):
            Engine(model, decoder="native").generate([[1]])
        assert len(Engine(model).generate([[1]], Sampling(max_tokens=3))[0].tokens) == 3
    finally:
        native.load.cache_clear()
