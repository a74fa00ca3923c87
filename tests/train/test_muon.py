"""Muon against a twin that takes every map out by its definition, against torch's, and over stops."""

import math
from pathlib import Path

import pytest
import torch
import toy_run
from hypothesis import given
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig
from leyden.model.lora import LoraConfig
from leyden.model.matrices import Fused, hidden_matrices
from leyden.train import AdamWConfig, LearningRate, MasterAdamW, Pretrain, RunSettings, TrainState, build_state, fit
from leyden.train.muon import MuonConfig, orthogonalised

ONE = torch.tensor(1.0)
SHAPE = ModelConfig(
    vocab_size=32,
    hidden_size=12,
    num_hidden_layers=3,
    layer_types=("linear_attention", "full_attention", "hgrn2_attention"),
    mlp_types=("experts", "dense", "experts"),
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    rotary_dim=4,
    intermediate_size=10,
    num_local_experts=3,
    shared_intermediate_size=6,
)


def _gradients(model: HybridLM, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in model.named_parameters()
    }
    for name, p in model.named_parameters():
        p.grad = drawn[name].to(p.dtype, copy=True)
    return drawn


def _maps(name: str, weight: torch.Tensor) -> list[torch.Tensor]:
    """Views of the maps of a weight, row by row as the modules read them."""
    if name.endswith("qkv_proj.weight"):
        heads, width = SHAPE.num_attention_heads, SHAPE.head_dim
        rows = [[(3 * head + part) * width + row for head in range(heads) for row in range(width)] for part in range(3)]
        return [weight[of_part] for of_part in rows]
    if name.endswith("experts.gate_up_proj"):
        return [half for expert in weight for half in (expert[: len(expert) // 2], expert[len(expert) // 2 :])]
    return list(weight) if weight.ndim == 3 else [weight]


def _orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Five steps, as the post writes them."""
    y = x / x.norm()
    for _ in range(5):
        y = 3.4445 * y - 4.7750 * (y @ y.T) @ y + 2.0315 * (y @ y.T) @ (y @ y.T) @ y
    return y


def test_equals_a_twin_in_float64() -> None:
    """Momentum, look-ahead, map by map, scale and decay; what is no map of a layer is AdamW's."""
    model = HybridLM(SHAPE, seed=3).double()
    optimizer = MasterAdamW(model, AdamWConfig(muon=MuonConfig()), shape=SHAPE)
    plain = HybridLM(SHAPE, seed=3).double()
    adam = MasterAdamW(plain)
    twin = {name: p.detach().clone() for name, p in model.named_parameters()}
    momentum = {name: torch.zeros_like(weight) for name, weight in twin.items()}
    for seed in range(3):
        gradients = _gradients(model, seed)
        _gradients(plain, seed)
        for one in (optimizer, adam):
            one.accumulate()
            one.step(1e-2, torch.tensor(4.0))
        for name, gradient in gradients.items():
            momentum[name] = 0.95 * momentum[name] + 0.05 * gradient / 4
            ahead = 0.95 * momentum[name] + 0.05 * gradient / 4
            twin[name] *= 1 - 1e-2 * 0.1
            updates = [0.2 * math.sqrt(max(x.shape)) * _orthogonal(x) for x in _maps(name, ahead) if x.ndim == 2]
            for place, update in zip(_maps(name, torch.arange(ahead.numel()).view(ahead.shape)), updates, strict=False):
                twin[name].view(-1)[place.flatten()] -= 1e-2 * update.flatten()
    others = dict(plain.named_parameters())
    by_muon = hidden_matrices({name: tuple(p.shape) for name, p in model.named_parameters()}, SHAPE)
    for name, p in model.named_parameters():
        expected = twin[name] if name in by_muon else others[name]
        torch.testing.assert_close(p, expected, rtol=1e-9, atol=1e-12, msg=name)
    assert {name.split(".")[-2] for name in others if name not in by_muon and others[name].ndim > 1} == {
        "embed_tokens", "lm_head", "gate", "coefficient"
    }  # fmt: skip
    assert optimizer.num_steps == 3


@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_torch_on_one_matrix(scale: str, nesterov: bool) -> None:
    """In bfloat16, of which torch's divides after rounding and ours before."""
    shape = SHAPE.model_copy(update={"num_local_experts": 0, "mlp_types": ()})
    model = HybridLM(shape, seed=1)
    config = MuonConfig.parse({"scale": scale, "nesterov": nesterov, "lr_factor": 2.0}, "muon")
    ours = MasterAdamW(model, AdamWConfig(muon=config), shape=shape)
    weight = model.layers[1].mlp.down_proj.weight
    other = torch.nn.Parameter(weight.detach().clone())
    theirs = torch.optim.Muon([other], lr=2e-2, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=scale)
    before = other.detach().clone()
    for seed in range(3):
        _gradients(model, seed)
        other.grad = weight.grad.clone()
        ours.accumulate()
        ours.step(1e-2, ONE)
        theirs.step()
    assert (weight - other).norm() < 0.02 * (other - before).norm()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_singular_values_come_near_one(rows: int, columns: int, seed: int) -> None:
    x = torch.randn(1, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, v = torch.linalg.svd(x[0], full_matrices=False)
    found = u.mT @ orthogonalised(x, 5, torch.float64)[0] @ v.mT
    values = found.diagonal()
    assert (found - torch.diag(values)).abs().max() < 1e-9, "the singular vectors stay"
    assert (values[s > 0.01 * s.norm()] > 0.6).all()
    assert (values < 1.25).all()


def test_a_matrix_without_gradient_stays() -> None:
    assert not orthogonalised(torch.zeros(2, 3, 4), 5, torch.bfloat16).any()


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_joining_undoes_splitting(experts: int, groups: int, maps: int, rows: int) -> None:
    weight = torch.randn(experts, groups * maps * rows, 5)
    fused = Fused(groups, maps)
    assert fused.split(weight).shape == (experts * maps, groups * rows, 5)
    assert torch.equal(fused.join(fused.split(weight), tuple(weight.shape)), weight)
    assert torch.equal(fused.join(fused.split(weight[0]), tuple(weight[0].shape)), weight[0])


def test_a_skipped_step_changes_nothing() -> None:
    model = HybridLM(SHAPE).bfloat16()
    optimizer = MasterAdamW(model, AdamWConfig(muon=MuonConfig()), shape=SHAPE)
    for seed, value in enumerate((None, torch.nan, torch.inf)):
        _gradients(model, seed)
        if value is not None:
            before = [x.clone() for x in (*model.parameters(), *optimizer.tensors().values())]
            model.layers[0].self_attn.qkv_proj.weight.grad.fill_(value)
        optimizer.accumulate()
        optimizer.step(1e-2, ONE, skip=None if value is None else torch.tensor(True))
        if value is not None:
            assert all(map(torch.equal, before, (*model.parameters(), *optimizer.tensors().values())))
    assert optimizer.num_steps == 1


def _toy(run_dir: Path, config: AdamWConfig, *, steps: int) -> TrainState:
    torch.manual_seed(3)
    model = toy_run.tiny_model(torch.bfloat16)
    state = TrainState(model, MasterAdamW(model, config, shape=model.config))
    state.resume(run_dir)
    toy = toy_run.settings(total_steps=steps)
    fit(state, _Counting(), Pretrain(), LearningRate(lr=3e-3, schedule="constant"), toy, run_dir=run_dir)
    return state


class _Counting(toy_run.CountingBatches):
    """The same batches in every run."""

    def __init__(self) -> None:
        super().__init__(length=9)

    def __next__(self) -> toy_run.Batch:
        self.served += 1
        return toy_run.counting_batch([self.served, 3 * self.served % 32], self.length)


@pytest.mark.parametrize(
    "config",
    [AdamWConfig(muon=MuonConfig()), AdamWConfig(moments="bfloat16", decay_embeddings=False)],
    ids=["muon", "bfloat16"],
)
def test_a_stopped_run_goes_on_with_the_same_bits(config: AdamWConfig, tmp_path: Path) -> None:
    whole = _toy(tmp_path / "whole", config, steps=6)
    _toy(tmp_path / "stopped", config, steps=3)
    stopped = _toy(tmp_path / "stopped", config, steps=6)
    assert stopped.step == whole.step == 6
    for name, tensor in whole._tensors().items():
        assert torch.equal(stopped._tensors()[name], tensor), name
    with pytest.raises(UserError, match="is missing"):
        _toy(tmp_path / "whole", AdamWConfig() if config.muon else AdamWConfig(muon=MuonConfig()), steps=6)


def test_moments_in_bfloat16_are_those_in_float32_rounded_each_step() -> None:
    model, wide = toy_run.tiny_model(), toy_run.tiny_model()
    narrow = MasterAdamW(model, AdamWConfig(moments="bfloat16"))
    twin = MasterAdamW(wide)
    for seed in range(3):
        for network, own in ((model, narrow), (wide, twin)):
            _gradients(network, seed)
            own.accumulate()
            own.step(1e-2, ONE)
        for name, tensor in twin.tensors().items():
            tensor.copy_(tensor.bfloat16())
            assert torch.equal(narrow.tensors()[name].float(), tensor), name
        assert narrow.tensors()["exp_avg.norm.weight"].dtype == torch.bfloat16
    assert all(map(torch.equal, model.parameters(), wide.parameters()))


def test_an_embedding_decays_unless_it_is_not_to() -> None:
    for decays in (True, False):
        model = toy_run.tiny_model()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = MasterAdamW(model, AdamWConfig(decay_embeddings=decays))
        optimizer.accumulate()  # zeros
        optimizer.step(1e-1, ONE)
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert ("embed_tokens.weight" in changed) is decays
        assert "lm_head.weight" in changed
        assert "norm.weight" not in changed


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"never fall.*take betas of at most 0\.996, or float32"):
        AdamWConfig.parse({"moments": "bfloat16", "beta2": 0.999}, "[train.optimizer]")
    with pytest.raises(UserError, match="momentum"):
        AdamWConfig.parse({"muon": {"momentum": 1.0}}, "[train.optimizer]")
    settings = RunSettings(optimizer=AdamWConfig(muon=MuonConfig()), lora=LoraConfig(), dtype="float32")
    with pytest.raises(UserError, match="leave one of the two tables out"):
        build_state(SHAPE, settings, row_tokens=8)
