"""LoRA: a frozen model of which low-rank additions alone are trained (arXiv 2106.09685).

A projection ``y = W x`` becomes ``y = W x + (alpha / rank) B (A x)``, with A [rank, D] and B [F, rank]. B begins as
zeros, so an adapted model first computes what its base computes. Nothing of a model is replaced: A and B are a
submodule of the projection that they belong to (:class:`LowRank`), under the names ``....q_proj.lora.a`` and ``.b``.

Of stacked experts each has an A and a B of its own (:class:`ExpertsLowRank`,
:func:`leyden.ops.swiglu_experts_low_rank`). The base may be in 8 bits (:func:`quantize_base`): nothing is ever added to
its weights.

There is no dropout, on purpose: the engine draws with the same weights that the trainer scores with.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import torch
from pydantic import Field, field_validator
from torch import nn

from leyden.core.config import Config
from leyden.core.errors import UserError, suggest
from leyden.model.experts import Experts, no_additions
from leyden.model.lm import HybridLM
from leyden.model.losses import OutputProjection
from leyden.model.quantized import QuantizedExperts, QuantizedLinear, quantize
from leyden.ops import LowRankExperts

EXPERTS = "experts"
"""The target that stands for both projections of all routed experts."""

LORA = "lora"
"""The name of the submodule of what is adapted."""


INT8_ON_RANKS = (
    "train.lora.int8 = true holds the model in 8 bits on one process; several ranks divide one in bfloat16: leave it "
    "out, or start one process."
)


class LoraConfig(Config):
    """The table ``[train.lora]`` of a recipe."""

    rank: int = Field(default=16, ge=1)
    """The rank of every addition."""
    alpha: float = Field(default=32.0, gt=0)
    """An addition is multiplied by ``alpha / rank``."""
    targets: tuple[str, ...] = Field(default=("attention",), min_length=1)
    """What is adapted: ``attention`` (every projection of the mixers), ``experts`` (both of all routed experts),
    ``dense`` (of dense feed-forwards and shared experts), or projections by their names, as ``q_proj``."""
    dropout: float = 0.0
    """0: the only value there is."""
    int8: bool = False
    """Hold the projections and experts of the model, which are not trained, in 8 bits."""

    @field_validator("dropout")
    @classmethod
    def _none(cls, dropout: float) -> float:
        if dropout:
            raise ValueError("must be 0: the engine draws with the weights that training scores with; leave it out")
        return dropout

    @property
    def scale(self) -> float:
        """What an addition is multiplied by."""
        return self.alpha / self.rank


class LowRank(nn.Module):
    """``(scale) B (A x)``, beside a projection.

    Args:
        rank: of the addition.
        in_features, out_features: of the projection.
        scale: see :attr:`LoraConfig.scale`.
        device: of the projection.
    """

    def __init__(self, rank: int, in_features: int, out_features: int, scale: float, device: torch.device) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(rank, in_features, device=device))
        self.b = nn.Parameter(torch.zeros(out_features, rank, device=device))
        self.rank, self.scale = rank, scale

    def product(self) -> torch.Tensor:
        """[F, D]: what is added to the projection's weight."""
        return self.b @ self.a * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., F], in the dtype of x."""
        inner = nn.functional.linear(x, self.a.to(x.dtype))
        return nn.functional.linear(inner, self.b.to(x.dtype)) * self.scale


class ExpertsLowRank(nn.Module):
    """The additions to both projections of the experts of a layer.

    Args:
        rank: of the additions.
        gate_up, down: shapes of the stacked weights, [E, 2F, D] and [E, D, F].
        scale: see :attr:`LoraConfig.scale`.
        device: of the experts.
    """

    def __init__(
        self, rank: int, gate_up: tuple[int, ...], down: tuple[int, ...], scale: float, device: torch.device
    ) -> None:
        super().__init__()
        (E, F2, D), (_, _, F) = gate_up, down
        self.gate_up_a = nn.Parameter(torch.zeros(E, rank, D, device=device))
        self.gate_up_b = nn.Parameter(torch.zeros(E, F2, rank, device=device))
        self.down_a = nn.Parameter(torch.zeros(E, rank, F, device=device))
        self.down_b = nn.Parameter(torch.zeros(E, D, rank, device=device))
        self.rank, self.scale = rank, scale

    def stacks(self, dtype: torch.dtype) -> tuple[LowRankExperts, ...]:
        """A and the scaled B of both projections, in ``dtype``."""
        a, b = (self.gate_up_a, self.down_a), (self.gate_up_b, self.down_b)
        pairs = [(one.to(dtype), other.to(dtype) * self.scale) for one, other in zip(a, b, strict=True)]
        return (LowRankExperts(*(part for pair in pairs for part in pair)),)


def add_lora(model: HybridLM, config: LoraConfig, seed: int = 0) -> HybridLM:
    """Freeze ``model`` and give it adapters, in place; it first computes what it computed before.

    Args:
        model: on one process; on the meta device the adapters hold nothing either.
        config: which projections, and how.
        seed: of the initial A; that of a projection follows from it and from its name.

    Returns:
        The model, of which the adapters alone ask for a gradient.

    Raises:
        UserError: the model has no projection of the name of a target.
    """
    model.requires_grad_(False)
    for name in adapted_modules(model, config.targets):
        module = model.get_submodule(name)
        attach(module, adapter_for(module, config.rank, config.scale))
    if not model.norm.weight.is_meta:
        fill_initial(model, seed)
    return model


def fill_initial(model: HybridLM, seed: int) -> None:
    """Give adapters that hold nothing yet their initial weights."""
    for name, parameter in adapter_parameters(model).items():
        parameter.data.copy_(initial_adapter(name, tuple(parameter.shape), seed))


def adapted_modules(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """The names of the modules that ``targets`` mean.

    Raises:
        UserError: one of them means none of this model.
    """
    kinds = {name: _targets_of(name, module) for name, module in model.named_modules() if _is_adaptable(name, module)}
    known = sorted({target for of_module in kinds.values() for target in of_module})
    for target in targets:
        if target not in known:
            raise UserError(
                f"LoRA target '{target}' is no projection of this model{suggest(target, known)}; it has "
                f"{', '.join(known)}."
            )
    return [name for name, of_module in kinds.items() if of_module & set(targets)]


def adapter_for(module: nn.Module, rank: int, scale: float) -> LowRank | ExpertsLowRank:
    """An adapter of zeros.

    Args:
        module: stacked experts, or a projection, in floats or in 8 bits.
        rank, scale: of the adapter.
    """
    if is_experts(module):
        gate_up, down = module.gate_up_proj, module.down_proj
        return ExpertsLowRank(rank, tuple(gate_up.shape), tuple(down.shape), scale, gate_up.device)
    weight = module.weight
    assert isinstance(weight, torch.Tensor), "a projection"
    return LowRank(rank, weight.shape[1], weight.shape[0], scale, weight.device)


def attach(module: Any, adapter: LowRank | ExpertsLowRank) -> None:
    """Let ``module``, which has none, compute with ``adapter``."""
    module.add_module(LORA, adapter)
    if isinstance(adapter, ExpertsLowRank):
        module.additions = adapter.stacks
    else:
        module.register_forward_hook(_add)


def quantize_base(model: HybridLM) -> HybridLM:
    """Hold the projections and experts of an adapted model in 8 bits, in place; its adapters stay as they are."""
    kept = list(adapters(model))
    module: Any
    for _, module, adapter in kept:
        delattr(module, LORA)
        if isinstance(adapter, ExpertsLowRank):
            module.additions = no_additions
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    quantize(model)
    for parameter in trained:
        parameter.requires_grad_()
    for name, _, adapter in kept:
        attach(model.get_submodule(name), adapter)
    return model


def is_in_8_bits(model: nn.Module) -> bool:
    """Whether its projections are."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())


def _add(module: nn.Module, arguments: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
    return out + module.get_submodule(LORA)(arguments[0])


def adapters(model: nn.Module) -> Iterator[tuple[str, nn.Module, LowRank | ExpertsLowRank]]:
    """The name of every module that has an adapter, the module, and the adapter."""
    for name, module in model.named_modules():
        adapter = getattr(module, LORA, None)
        if isinstance(adapter, LowRank | ExpertsLowRank):
            yield name, module, adapter


def adapter_parameters(model: nn.Module) -> Mapping[str, nn.Parameter]:
    """Of all adapters, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}


def is_adapter(name: str) -> bool:
    """Whether ``name`` is of a weight of an adapter, as ``layers.3.self_attn.q_proj.lora.a``."""
    return f".{LORA}." in name


def initial_adapter(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The initial value of an adapter's weight, float32 on the CPU: B zeros, A uniform within ``1 / sqrt(D)``.

    That is what PEFT draws (Kaiming's rule with a = sqrt 5).
    """
    if name.endswith("b"):
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(shape[-1])


def base_of(model: HybridLM) -> HybridLM:
    """The model without its adapters, in evaluation mode and in the same memory: no weight exists twice.

    Args:
        model: on one process.
    """
    with torch.device("meta"):
        base = HybridLM(model.config)
    if is_in_8_bits(model):
        quantize(base)
    weights = {name: weight for name, weight in model.state_dict().items() if not is_adapter(name)}
    base.load_state_dict(weights, assign=True)
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        if name in weights:
            continue
        base.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)
    return base.requires_grad_(False).eval()


def is_experts(module: nn.Module) -> TypeGuard[Experts | QuantizedExperts]:
    """Whether ``module`` is the stacked experts of a layer."""
    return isinstance(module, Experts | QuantizedExperts)


def _is_adaptable(name: str, module: nn.Module) -> bool:
    """A projection of a layer, in floats or in 8 bits: what has a matrix ``weight`` and maps x by it."""
    if not name.startswith("layers."):
        return False
    is_linear = isinstance(module, nn.Linear | QuantizedLinear) and not isinstance(module, OutputProjection)
    return is_experts(module) or (is_linear and not name.endswith("coefficient"))


def _targets_of(name: str, module: nn.Module) -> set[str]:
    """The names under which ``name`` may be asked for."""
    if is_experts(module):
        return {EXPERTS}
    return {"attention" if ".self_attn." in name else "dense", name.rpartition(".")[2]}
