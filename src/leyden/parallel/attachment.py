"""A finished model on one process becomes a rank's part of it: everything that a plan changes, in one place.

The order matters. Weights are cut first, so that everything after sees this rank's shapes; then the seams of the model
are filled (tensor, sequence, expert parallelism); then its layers are dealt to pipeline stages; the compiler takes
what the layers then do, and recomputation goes around that; FSDP comes last, since it replaces the parameters.
"""

from dataclasses import dataclass, field, replace

import torch

from leyden.model import HybridLM, ModelConfig
from leyden.model.initialization import initial_weight
from leyden.model.lora import initial_adapter, is_adapter
from leyden.model.mixers import mixer_of
from leyden.parallel.experts import install_experts
from leyden.parallel.mesh import Mesh
from leyden.parallel.part import Part
from leyden.parallel.pipeline import Pipeline
from leyden.parallel.ranks import StageRanks
from leyden.parallel.recompute import install_compile, install_recompute
from leyden.parallel.sequence import install_sequence
from leyden.parallel.shard import Weight, Weights, install_fsdp, is_counted, sharded_part, summed_over
from leyden.parallel.tensor import install_tensor
from leyden.parallel.weights import cut_weights, part_of


@dataclass(frozen=True, eq=False)
class Attached:
    """A rank's model.

    Attributes:
        model: a HybridLM, or the stages of a pipeline that this rank has.
        weights: what the rank holds of each weight that is trained.
        frozen: of those that are not, as the base of adapters.
    """

    model: HybridLM | Pipeline
    weights: Weights
    frozen: Weights = field(default_factory=lambda: Weights({}))


def attach(model: HybridLM, mesh: Mesh, dtype: torch.dtype, *, seed: int = 0, row_tokens: int = 8192) -> Attached:
    """Leave ``model`` this rank's part of itself, ready to compute with the other ranks what it computed alone.

    Every rank of the world calls this with the same model at the same moment. The result takes the same packed rows on
    all ranks of the same documents, and what it computes are shares: they add up to what one process would compute.

    Args:
        model: plain, whole, and not used again by itself; on the meta device, it is filled with its initial weights,
            of which no rank ever holds more than its part and one weight at a time.
        mesh: of the ranks.
        dtype: of the computation; the weights keep theirs.
        seed: of the initial weights of a model on the meta device.
        row_tokens: of a data rank's rows; pipeline stages are dealt so that they cost alike at this length.
    """
    settings, config = mesh.plan.settings, model.config
    empty = model.embed_tokens.weight.is_meta
    parts = cut_weights(model, mesh)
    model.ranks = StageRanks(mesh)
    install_tensor(model, mesh)
    install_sequence(model, mesh)
    install_experts(model, mesh)
    attached = Pipeline(model, mesh, row_tokens, dtype) if mesh.plan.pp > 1 else model
    for stage in attached.stages if isinstance(attached, Pipeline) else [attached]:
        if settings.compile:
            install_compile(stage, mesh.device)
        install_recompute(stage, settings.activation_checkpointing)
        install_fsdp(stage, mesh, dtype)
        if empty:
            stage.to_empty(device=mesh.device)
    weights, frozen = (_weights(attached, mesh, parts, trained) for trained in (True, False))
    if empty:
        _fill(attached, weights, config, mesh, seed)
        for weight in frozen.values():  # until the model that is adapted is read
            weight.local.fill_(float(weight.local.ndim == 1))
    return Attached(attached, weights, frozen)


def _weights(model: HybridLM | Pipeline, mesh: Mesh, parts: dict[str, Part], trained: bool) -> Weights:
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != trained:
            continue
        over = summed_over(name, mesh)
        group = None if over is None else mesh.groups[over]
        found[name] = Weight(parameter, sharded_part(name, parts[name], mesh), group, is_counted(name, mesh))
    return Weights(found, mesh.groups["world"], mesh.groups["stage"])


def _fill(model: HybridLM | Pipeline, weights: Weights, config: ModelConfig, mesh: Mesh, seed: int) -> None:
    """Initial weights, and the mixers' buffers, into memory that holds nothing yet."""
    for name, weight in weights.items():
        part = weight.part
        if is_adapter(name):
            weight.local.copy_(part.cut(initial_adapter(name, part.shape, seed)))
            continue
        if len(part.shape) < 3:
            weight.local.copy_(part.cut(initial_weight(name, part.shape, config, seed)))
            continue
        for span in part.spans[0]:
            drawn = initial_weight(name, part.shape, config, seed, experts=span)
            inner = replace(part, shape=tuple(drawn.shape), spans=(((0, len(drawn)),), *part.spans[1:]))
            weight.local.copy_(inner.cut(drawn))
    fill_buffers(model, config, mesh)


def fill_buffers(model: HybridLM | Pipeline, config: ModelConfig, mesh: Mesh | None = None) -> None:
    """Give the mixers' buffers, which hold nothing yet, this rank's part of their values. Weights in 8 bits are none of
    them."""
    for name, buffer in model.named_buffers():
        if name.endswith(("_proj", ".weight", "scale")):
            continue
        values = _buffer(name, config)
        buffer.copy_(values if mesh is None else part_of(name, tuple(values.shape), mesh.plan, mesh.at).cut(values))


def _buffer(name: str, config: ModelConfig) -> torch.Tensor:
    """The values of a mixer's buffer, as ``layers.3.self_attn.slopes.values``."""
    _, layer, half, local = name.replace(".block.", ".").split(".", 3) if name.count(".") >= 3 else ("", "0", "", "")
    index, every = int(layer), config.with_nextn()
    if name.startswith("mtp."):
        index += config.num_hidden_layers
    found = mixer_of(every.layer_types[index]).derived_buffers(every, index) if half == "self_attn" else {}
    if local not in found:
        raise ValueError(f"the buffer {name} has no initial value; say it in the derived_buffers() of its mixer.")
    return found[local]
