"""muP: its table against arithmetic, and a coordinate check: updates of a wide model move outputs as a narrow one's."""

from typing import Any

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig
from leyden.model.lora import LoraConfig
from leyden.train import AdamWConfig, Pretrain, RunSettings, TrainState, build_state, train_step
from leyden.train.muon import MuonConfig
from leyden.train.mup import MupConfig, mup_rates

BASE = 32


def _shape(width: int, **changes: Any) -> ModelConfig:
    plain: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "layer_types": ("linear_attention", "full_attention"),
        "num_attention_heads": width // 8,
        "num_key_value_heads": width // 16,
        "head_dim": 8,
        "rotary_dim": 4,
        "intermediate_size": width,
        "num_local_experts": 4,
    }
    return ModelConfig(**(plain | changes))


def _state(config: ModelConfig, mup: MupConfig | None, **optimizer: Any) -> TrainState:
    settings = RunSettings(dtype="float32", mup=mup, optimizer=AdamWConfig(**optimizer), clip_norm=1e9)
    return build_state(config, settings, row_tokens=64)


def _moved(config: ModelConfig, mup: MupConfig | None, lr: float, **optimizer: Any) -> float:
    """Root mean square of what four steps change the logits by."""
    from toy_run import Batch

    state = _state(config, mup, **optimizer)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 61, (1, 65), generator=generator)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.tensor([0, 64], dtype=torch.int32))
    model = state.model
    assert isinstance(model, HybridLM)
    with torch.no_grad():
        before = model.eval()(tokens)
    for _ in range(4):
        train_step(state, [batch], Pretrain(), lr=lr, clip_norm=1e9)
    with torch.no_grad():
        return float((model.eval()(tokens) - before).square().mean().sqrt())


MUON = MuonConfig(dtype="float32")


@pytest.mark.parametrize(
    ("initialization", "optimizer", "lr"),
    [
        pytest.param("xavier", {}, 2e-3, id="xavier"),
        pytest.param("normal", {}, 2e-3, id="normal", marks=pytest.mark.slow),
        pytest.param("xavier", {"muon": MUON}, 2e-3, id="muon", marks=pytest.mark.slow),
        pytest.param("normal", {"muon": MUON}, 2e-3, id="normal-muon"),
        pytest.param("xavier", {"muon": MUON.model_copy(update={"scale": "original"})}, 1e-2, id="original",
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_outputs_move_alike_at_every_width(initialization: str, optimizer: dict[str, Any], lr: float) -> None:
    moved = {
        width: _moved(_shape(width, initialization=initialization), MupConfig(base_width=BASE), lr, **optimizer)
        for width in (BASE, 4 * BASE, 8 * BASE)
    }
    assert max(moved.values()) < 2 * min(moved.values()), moved
    without = _moved(_shape(8 * BASE, initialization=initialization), None, lr, **optimizer)
    assert without > 2 * moved[8 * BASE], "without muP a wide model moves further"


@pytest.mark.parametrize("initialization", ["xavier", "normal"])
def test_nothing_changes_at_the_base_width(initialization: str) -> None:
    config = _shape(BASE, initialization=initialization, score_head=True)
    state = _state(config, MupConfig(base_width=BASE))
    plain = dict(HybridLM(config).named_parameters())
    assert all(torch.equal(master, plain[name]) for name, master in state.optimizer.masters().items())
    shapes = {name: tuple(p.shape) for name, p in plain.items()}
    assert set(mup_rates(config, shapes, MupConfig(base_width=BASE), None).values()) == {1.0}


@pytest.mark.parametrize("initialization", ["xavier", "normal"])
def test_initial_sizes_and_rates_follow_the_table(initialization: str) -> None:
    narrow, wide = _shape(64, initialization=initialization), _shape(1024, initialization=initialization)
    mup = MupConfig(base_width=64)
    small, large = (_state(config, mup).optimizer.masters() for config in (narrow, wide))
    m = 16.0
    shrinks = {name: float(small[name].std() / large[name].std()) for name in small if small[name].ndim > 1}
    rates = mup_rates(wide, {name: tuple(p.shape) for name, p in large.items()}, mup, None)
    for name, factor in shrinks.items():
        kind = "input" if name.startswith("embed") else "output" if "lm_head" in name or "mlp.gate." in name else ""
        expected = {"input": 1.0, "output": m, "": m**0.5}[kind]
        assert factor == pytest.approx(expected, rel=0.2 if "mlp.gate" in name else 0.08), name
        assert rates[name] == (1.0 if kind == "input" else 1 / m), name
    assert rates["norm.weight"] == 1.0
    assert not large["norm.weight"].ne(1).any()


def test_decay_does_not_follow_the_rate() -> None:
    config = _shape(4 * BASE)
    for optimizer in ({}, {"muon": MuonConfig()}):
        state = _state(config, MupConfig(base_width=BASE), **optimizer)
        before = {name: master.clone() for name, master in state.optimizer.masters().items()}
        state.optimizer.accumulate()  # zeros
        state.optimizer.step(1e-2, torch.tensor(1.0))
        for name, master in state.optimizer.masters().items():
            expected = before[name] * (1 - 1e-3) if master.ndim > 1 else before[name]
            torch.testing.assert_close(master, expected, rtol=1e-6, atol=1e-9, msg=name)


def test_normal_initial_weights_are_olmo_2s() -> None:
    config = _shape(128, initialization="normal")
    model = HybridLM(config, seed=3)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert not weight.ne(1).any(), name
            continue
        assert weight.abs().max() <= 0.06, name
        assert float(weight.detach().std()) == pytest.approx(0.0197, rel=0.1), name  # what the cut leaves of 0.02
    one, other = model.layers[0].mlp.experts.down_proj[:2]
    assert not torch.equal(one, other)


def test_what_has_no_rule_is_refused() -> None:
    mup = MupConfig(base_width=BASE)
    with pytest.raises(UserError, match="untie them"):
        _state(_shape(64, tie_word_embeddings=True), mup)
    with pytest.raises(UserError, match='take "xavier" or "normal"'):
        _state(_shape(64, initialization="induction"), mup)
    with pytest.raises(UserError, match="leave one of the two out"):
        build_state(_shape(64), RunSettings(dtype="float32", mup=mup, lora=LoraConfig()), row_tokens=8)
