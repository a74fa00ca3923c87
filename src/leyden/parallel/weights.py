"""What a rank holds of each weight: one table.

``tensor`` weights are divided over the tensor ranks, ``experts`` over the expert and expert-tensor ranks, and all
others are whole on each rank. FSDP divides further (:mod:`leyden.parallel.shard`).
"""

from typing import Literal

from torch import nn

from leyden.parallel.mesh import Mesh
from leyden.parallel.part import Part
from leyden.parallel.plan import Plan

Kind = Literal["tensor", "experts", "shared", "replicated"]
"""``shared``: the shared expert, which every rank applies to its own tokens; ``replicated``: norms and routers."""

_TENSOR_DIM = {
    "embed_tokens.weight": 0,
    "lm_head.weight": 0,
    "self_attn.qkv_proj.weight": 0,
    "self_attn.output_gate.weight": 0,
    "self_attn.norm.weight": 0,
    "self_attn.out_proj.weight": 1,
    "self_attn.q_proj.weight": 0,
    "self_attn.k_proj.weight": 0,
    "self_attn.v_proj.weight": 0,
    "self_attn.o_proj.weight": 1,
    "self_attn.slopes.values": 0,
    "mlp.gate_proj.weight": 0,
    "mlp.up_proj.weight": 0,
    "mlp.down_proj.weight": 1,
}
"""The dim that tensor ranks divide. Rows of the fused projection lie head by head, so heads are stretches of rows."""

_EXPERTS = {"mlp.experts.gate_up_proj": (1, 2), "mlp.experts.down_proj": (2, 1)}
"""The dim of the hidden width, and how many projections it stacks; dim 0 is that of the experts."""


def kind_of(name: str) -> Kind:
    """What becomes of the weight ``name``, as ``layers.3.self_attn.norm.weight``."""
    local = _within_layer(name)
    if local in _TENSOR_DIM:
        return "tensor"
    if local in _EXPERTS:
        return "experts"
    return "shared" if local.startswith("mlp.shared.") else "replicated"


def part_of(name: str, shape: tuple[int, ...], plan: Plan, at: dict[str, int]) -> Part:
    """What a rank holds of the weight ``name``, before FSDP.

    Args:
        name: as in ``model.named_parameters()``.
        shape: of the whole weight.
        plan: the sizes of the axes.
        at: the rank's coordinates.
    """
    part, local = Part.whole(shape), _within_layer(name)
    if local in _TENSOR_DIM:
        return part.narrow(_TENSOR_DIM[local], at["tp"], plan.tp)
    if local in _EXPERTS:
        dim, blocks = _EXPERTS[local]
        return part.narrow(0, at["ep"], plan.ep).narrow(dim, at["etp"], plan.etp, blocks)
    return part


def cut_weights(model: nn.Module, mesh: Mesh) -> dict[str, Part]:
    """Leave ``model`` this rank's part of every weight, before FSDP, and of the decay slopes.

    Args:
        model: whole, on any device, meta included; tied weights stay tied.
        mesh: of the ranks.

    Returns:
        The part that the rank has of each parameter, by name.
    """
    parts: dict[str, Part] = {}
    cut: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        parts[name] = part_of(name, tuple(parameter.shape), mesh.plan, mesh.at)
        if parameter not in cut:
            cut[parameter] = nn.Parameter(parts[name].cut(parameter.detach()), parameter.requires_grad)
        owner, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(owner), own_name, cut[parameter])
    for name, buffer in list(model.named_buffers()):
        owner, _, own_name = name.rpartition(".")
        part = part_of(name, tuple(buffer.shape), mesh.plan, mesh.at)
        model.get_submodule(owner).register_buffer(own_name, part.cut(buffer), persistent=False)
    return parts


def _within_layer(name: str) -> str:
    """``layers.3.mlp.x`` to ``mlp.x``."""
    return name.split(".", 2)[2] if name.startswith("layers.") else name
