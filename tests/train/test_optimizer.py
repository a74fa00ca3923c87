"""Master weights, weight decay, and what is remembered between steps."""

import pytest
import torch
from torch import nn

from leyden.train import AdamWConfig, MasterAdamW

ONE = torch.tensor(1.0)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(7, 5, generator=generator))
        self.stack = nn.Parameter(torch.randn(2, 3, 4, generator=generator))
        self.vector = nn.Parameter(torch.randn(5, generator=generator))
        self.frozen = nn.Parameter(torch.randn(3, generator=generator), requires_grad=False)


def _gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.randn(p.shape, generator=generator).to(torch.bfloat16).to(p.dtype)


def _update(model: nn.Module, optimizer: MasterAdamW, seed: int, divisor: torch.Tensor = ONE) -> None:
    _gradients(model, seed)
    optimizer.accumulate()
    optimizer.step(1e-3, divisor)


def test_equals_torch_with_decay_on_matrices_alone() -> None:
    ours, theirs = Small(), Small()
    optimizer = MasterAdamW(ours, AdamWConfig(weight_decay=0.3))
    groups = [
        {"params": [theirs.matrix, theirs.stack], "weight_decay": 0.3},
        {"params": [theirs.vector], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    for seed in range(4):
        _update(ours, optimizer, seed)
        _gradients(theirs, seed)
        reference.step()
    for (name, x), y in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7, msg=name)
    assert optimizer.num_steps == 4


def test_bfloat16_follows_float32_masters() -> None:
    """On the same gradients the masters of a bfloat16 model move exactly as a float32 model, and round into it."""
    wide, narrow = Small(), Small().to(torch.bfloat16)
    wide.load_state_dict({name: tensor.float() for name, tensor in narrow.state_dict().items()})
    optimizers = MasterAdamW(wide), MasterAdamW(narrow)
    for seed in range(20):
        _update(wide, optimizers[0], seed)
        _update(narrow, optimizers[1], seed)
    masters = optimizers[1].tensors()
    moved = False
    for (name, x), y in zip(wide.named_parameters(), narrow.parameters(), strict=True):
        assert y.dtype == torch.bfloat16
        if name != "frozen":
            assert torch.equal(masters[f"master.{name}"], x)
            assert torch.equal(y, x.to(torch.bfloat16))
            moved = moved or not torch.equal(x, y.float())
    assert moved, "float32 must hold more than bfloat16 does"


def test_float32_parameters_are_their_own_masters() -> None:
    assert not any(name.startswith("master") for name in MasterAdamW(Small()).tensors())


def test_accumulates_in_float32() -> None:
    """1 + 256 * 2^-8 in bfloat16 would stay 1."""
    model = Small().to(torch.bfloat16)
    optimizer = MasterAdamW(model)
    for value in [1.0] + 256 * [2.0**-8]:
        model.vector.grad = torch.full_like(model.vector, value)
        optimizer.accumulate()
        assert model.vector.grad is None
    assert float(optimizer.grad_norm()) == pytest.approx(2 * 5**0.5, rel=1e-6)


def test_divisor_scales_every_gradient() -> None:
    """With a large eps the update is no longer blind to the gradient's scale."""
    config = AdamWConfig(eps=10.0)
    ours, scaled = Small(), Small()
    divided, plain = MasterAdamW(ours, config), MasterAdamW(scaled, config)
    _update(ours, divided, 0, torch.tensor(4.0))
    _gradients(scaled, 0)
    for p in (scaled.matrix, scaled.stack, scaled.vector):
        p.grad = p.grad / 4
    plain.accumulate()
    plain.step(1e-3, ONE)
    for x, y in zip(ours.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-8)


def test_state_written_into_another_optimizer_continues_alike() -> None:
    first, second = Small().to(torch.bfloat16), Small().to(torch.bfloat16)
    a, b = MasterAdamW(first), MasterAdamW(second)
    for seed in range(3):
        _update(first, a, seed)
    second.load_state_dict(first.state_dict())
    for name, tensor in b.tensors().items():
        tensor.copy_(a.tensors()[name])
    b.num_steps = a.num_steps
    for seed in range(3, 6):
        _update(first, a, seed)
        _update(second, b, seed)
    for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True):
        assert torch.equal(x, y)


def test_a_step_needs_gradients() -> None:
    optimizer = MasterAdamW(Small())
    with pytest.raises(RuntimeError, match="accumulate"):
        optimizer.grad_norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_skipped_step_changes_nothing_but_forgets_the_gradients(dtype: torch.dtype) -> None:
    model = Small().to(dtype)
    optimizer = MasterAdamW(model)
    _update(model, optimizer, 0)
    before = [x.clone() for x in (*model.parameters(), *optimizer.tensors().values())]
    for value in (1.0, torch.nan, torch.inf):
        _gradients(model, 1)
        next(model.parameters()).grad.fill_(value)
        optimizer.accumulate()
        optimizer.step(1e-3, ONE, skip=torch.tensor(True))
        assert all(map(torch.equal, before, (*model.parameters(), *optimizer.tensors().values())))
        assert optimizer.num_steps == 1
        with pytest.raises(RuntimeError, match="accumulate"):
            optimizer.step(1e-3, ONE)
    other = Small().to(dtype)
    other.load_state_dict(model.state_dict())
    twin = MasterAdamW(other)
    for name, tensor in twin.tensors().items():
        tensor.copy_(optimizer.tensors()[name])
    twin.num_steps = 1
    for network, own, skip in ((model, optimizer, torch.tensor(False)), (other, twin, None)):
        _gradients(network, 2)
        own.accumulate()
        own.step(1e-3, ONE, skip=skip)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


class Chooser(nn.Module):
    """The least that has a bias by which a router chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Module()
        self.gate.weight = nn.Parameter(torch.ones(2, 3))
        self.gate.expert_bias = nn.Parameter(torch.tensor([0.5, 0.0, -0.25, 0.0]))

    def load(self, *counts: float) -> None:
        self.gate.weight.grad, self.gate.expert_bias.grad = torch.ones(2, 3), torch.tensor(counts).float()


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_biases_move_against_the_load_of_all_micro_batches(device: torch.device | None) -> None:
    model = Chooser()
    optimizer = MasterAdamW(model, device=device)
    for counts in ((5, 0, 1, 2), (5, 4, 1, 6)):  # together 10, 4, 2, 8, of which the mean is 6
        model.load(*counts)
        optimizer.accumulate()
    assert float(optimizer.grad_norm()) == pytest.approx(24**0.5), "a load is no part of it"
    optimizer.step(1e-3, torch.tensor(8.0), expert_bias_rate=0.125)
    assert model.gate.expert_bias.tolist() == [0.375, 0.125, -0.125, -0.125]
    assert not any("exp_avg.gate.expert_bias" in name for name in optimizer.tensors())
    assert "gate.expert_bias" in optimizer.masters()


def test_biases_of_an_even_load_and_of_a_skipped_step_stay() -> None:
    model = Chooser()
    optimizer, before = MasterAdamW(model), model.gate.expert_bias.tolist()
    for counts, skip, rate in (((3, 3, 3, 3), False, 0.1), ((9, 0, 0, 3), True, 0.1), ((9, 0, 0, 3), False, 0.0)):
        model.load(*counts)
        optimizer.accumulate()
        optimizer.step(1e-3, ONE, skip=torch.tensor(skip), expert_bias_rate=rate)
        assert model.gate.expert_bias.tolist() == before
