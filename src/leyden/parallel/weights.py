"""What a rank holds of each weight: one table, which knows every name of a model.

``tensor`` weights are divided over the tensor ranks, ``experts`` over the expert and expert-tensor ranks, and those
that are listed as whole are whole on each rank. FSDP divides further (:mod:`leyden.parallel.shard`). A name that the
table does not have raises: no plan computes with a weight of which it is not said how it is divided.
"""

from typing import Literal

from torch import nn

from leyden.model import MIXERS
from leyden.model.lora import LORA, is_adapter
from leyden.parallel.mesh import Mesh
from leyden.parallel.part import Part
from leyden.parallel.plan import Plan

Kind = Literal["tensor", "head_norm", "experts", "shared", "replicated", "adapter"]
"""``head_norm``: the norm over a mixer's heads, which is divided with them; ``shared``: what every rank applies to its
own tokens, as the shared expert, what makes what serves all heads of a mixer, what leads into a module for multi-token
prediction, and the vision side, which looks at the tiles that these tokens show; ``replicated``: norms and routers;
``adapter``: low-rank additions, which are small: they are divided as what they belong to, and FSDP leaves them
whole."""

_TENSOR_DIM = {
    "embed_tokens.weight": 0,
    "lm_head.weight": 0,
    "mlp.gate_proj.weight": 0,
    "mlp.up_proj.weight": 0,
    "mlp.down_proj.weight": 1,
}
"""The dim that tensor ranks divide."""

_HEAD_NORMS = {f"self_attn.{name}" for mixer in MIXERS.values() for name in mixer.head_norms}

for _mixer in MIXERS.values():
    for _name, _dim in _mixer.tensor_dims.items():
        if _TENSOR_DIM.setdefault(f"self_attn.{_name}", _dim) != _dim:
            raise ValueError(f"mixers disagree on the dim of {_name} that tensor ranks divide; give one another name.")

_WHOLE: dict[str, Kind] = {
    "norm.weight": "replicated",
    "score.weight": "replicated",
    "enorm.weight": "replicated",
    "hnorm.weight": "replicated",
    "final_layernorm.weight": "replicated",
    "eh_proj.weight": "shared",
    "input_layernorm.weight": "replicated",
    "post_attention_layernorm.weight": "replicated",
    "self_attn.q_norm.weight": "replicated",
    "self_attn.k_norm.weight": "replicated",
    "post_feedforward_layernorm.weight": "replicated",
    "mlp.gate.weight": "replicated",
    "mlp.gate.expert_bias": "replicated",
    "mlp.shared.mlp.gate_proj.weight": "shared",
    "mlp.shared.mlp.up_proj.weight": "shared",
    "mlp.shared.mlp.down_proj.weight": "shared",
    "mlp.shared.coefficient.weight": "shared",
}
"""What every rank has whole."""

for _mixer in MIXERS.values():
    _WHOLE.update({f"self_attn.{name}": "shared" for name in _mixer.whole})
    _WHOLE.update({f"self_attn.{name}": "replicated" for name in _mixer.whole_norms})

_TOWER_LAYERS = "vision.tower.layers."
_TOWER_NORMS = ("pre_layernorm", "layer_norm1", "layer_norm2")
_TOWER_MATRICES = (
    "patch_embedding",
    "position_embedding",
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
)
_WHOLE.update({f"vision.tower.{norm}.{leaf}": "replicated" for norm in _TOWER_NORMS for leaf in ("weight", "bias")})
_WHOLE.update(
    {
        f"vision.{name}.{leaf}": "shared"
        for name in (
            *(f"tower.{matrix}" for matrix in (*_TOWER_MATRICES, "mlp.fc1", "mlp.fc2")),
            *("projector.linear_1", "projector.linear_2"),
        )
        for leaf in ("weight", "bias")
    }
)
_WHOLE.update({f"vision.{name}": "shared" for name in ("tower.class_embedding", "image_newline")})

_EXPERTS = {"mlp.experts.gate_up_proj": (1, 2), "mlp.experts.down_proj": (2, 1)}
"""The dim of the hidden width, and how many projections it stacks; dim 0 is that of the experts."""


def has_load(name: str) -> bool:
    """Whether the load of experts stands in the place of the gradient of the weight ``name``
    (:func:`leyden.model.balance.with_load`): it is summed over ranks as gradients are, and is part of no norm."""
    return name.endswith("gate.expert_bias")


def kind_of(name: str) -> Kind:
    """What becomes of the weight ``name``, as ``layers.3.self_attn.norm.weight``.

    Raises:
        ValueError: no part of a model that is known here has a weight of that name.
    """
    local = _within_layer(name)
    if is_adapter(name):
        return "adapter"
    if local in _TENSOR_DIM:
        return "head_norm" if local in _HEAD_NORMS else "tensor"
    if local in _EXPERTS:
        return "experts"
    if local in _WHOLE:
        return _WHOLE[local]
    raise ValueError(
        f"it is not known how ranks divide the weight {name}; say it in the "
        f"mixer's tensor_dims, or add {local!r} to a table of leyden.parallel.weights."
    )


def part_of(name: str, shape: tuple[int, ...], plan: Plan, at: dict[str, int]) -> Part:
    """What a rank holds of the weight ``name``, before FSDP.

    Args:
        name: as in ``model.named_parameters()``.
        shape: of the whole weight.
        plan: the sizes of the axes.
        at: the rank's coordinates.

    Raises:
        ValueError: as :func:`kind_of`.
    """
    part, local, kind = Part.whole(shape), _within_layer(name), kind_of(name)
    if kind == "adapter":
        return _part_of_adapter(name, part, plan, at)
    if kind in ("tensor", "head_norm"):
        return part.narrow(_TENSOR_DIM[local], at["tp"], plan.tp)
    if kind == "experts":
        dim, blocks = _EXPERTS[local]
        return part.narrow(0, at["ep"], plan.ep).narrow(dim, at["etp"], plan.etp, blocks)
    return part


def adapted_weight(name: str) -> tuple[str, int]:
    """Of a weight of an adapter, the weight that it adds to, and the dim, counted from the last two, that it shares
    with it: B its rows (0), A its columns (1)."""
    owner, _, leaf = name.partition(f".{LORA}.")
    half, _, letter = leaf.rpartition("_")
    return f"{owner}.{half}_proj" if half else f"{owner}.weight", int(letter == "a")


def _part_of_adapter(name: str, part: Part, plan: Plan, at: dict[str, int]) -> Part:
    weight, shared = adapted_weight(name)
    kind, local = kind_of(weight), _within_layer(weight)
    if kind == "tensor" and _TENSOR_DIM[local] == shared:
        return part.narrow(shared, at["tp"], plan.tp)
    if kind == "experts":
        part = part.narrow(0, at["ep"], plan.ep)
        dim, blocks = _EXPERTS[local]
        if dim == shared + 1:
            return part.narrow(dim, at["etp"], plan.etp, blocks)
    return part


def adapter_group(name: str) -> str:
    """The group of ranks that together have the gradient of a weight of an adapter."""
    weight, shared = adapted_weight(name)
    kind, local = kind_of(weight), _within_layer(weight)
    if kind == "experts":
        return "expert_copies" if _EXPERTS[local][0] == shared + 1 else "expert_widths"
    return "dense" if kind == "tensor" and _TENSOR_DIM[local] == shared else "stage"


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
    """``layers.3.mlp.x`` and ``mtp.0.block.mlp.x`` to ``mlp.x``, ``vision.tower.layers.3.x`` to ``vision.tower.x``."""
    if name.startswith(_TOWER_LAYERS):
        return f"vision.tower.{name.removeprefix(_TOWER_LAYERS).partition('.')[2]}"
    return name.split(".", 2)[2].removeprefix("block.") if name.startswith(("layers.", "mtp.")) else name
