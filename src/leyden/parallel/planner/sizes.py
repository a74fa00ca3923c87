"""What a rank holds of each weight, from the shapes that the real modules have on the meta device.

Layers of a kind are alike, so each kind's shapes are looked up once, however many layers a model has.
"""

import functools
import math
from dataclasses import dataclass

import torch

from leyden.model import HybridLM, LayerKind, ModelConfig
from leyden.model.lora import LoraConfig, add_lora
from leyden.parallel.pipeline import layer_costs, split_layers
from leyden.parallel.plan import Plan
from leyden.parallel.shard import shard_dim
from leyden.parallel.weights import kind_of, part_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShardedGroup:
    """Weights that FSDP gathers at once.

    Attributes:
        axis: of its collectives: ``fsdp_dense``, ``fsdp_experts`` or ``fsdp_stage``.
        ranks: among which they are sharded.
        index: this one's number among them.
        shapes: of the rank's tensors before FSDP shards them.
    """

    axis: str
    ranks: int
    index: int
    shapes: tuple[Shape, ...]

    @functools.cached_property
    def numel(self) -> int:
        """Of the gathered weights."""
        return sum(map(math.prod, self.shapes))

    @functools.cached_property
    def padded(self) -> int:
        """Of the gathered weights as they travel, each filled up to equal shards."""
        return self.ranks * sum(math.prod(_chunk(shape, self.ranks)) for shape in self.shapes)

    @functools.cached_property
    def shard(self) -> int:
        """Of what this rank keeps."""
        return sum(math.prod(_chunk(shape, self.ranks, self.index)) for shape in self.shapes)


def _chunk(shape: Shape, ranks: int, index: int = 0) -> Shape:
    """Chunk ``index`` as FSDP cuts it; chunk 0 is a largest one."""
    dim = shard_dim(shape, ranks)
    step = -(-shape[dim] // ranks)
    size = max(0, min(step, shape[dim] - index * step))
    return (*shape[:dim], size, *shape[dim + 1 :])


@dataclass(frozen=True)
class Module:
    """The weights of one layer, or of what stands around the layers.

    Attributes:
        groups: what FSDP gathers, outermost module first.
        stage_numel: weights that all ranks of a stage have whole (norms, routers), float32.
        dense_numel: weights that all ranks with the same heads have whole (the norm over lightning's heads), float32.
        adapters: weights of adapters, float32, which FSDP does not shard.
        is_layer: whether it is a layer.
    """

    groups: tuple[ShardedGroup, ...]
    stage_numel: int
    dense_numel: int
    adapters: int = 0
    is_layer: bool = False

    @property
    def matrices(self) -> int:
        """Of the matrices of a layer, what this rank keeps."""
        return sum(group.shard for group in self.groups) if self.is_layer else 0

    @property
    def replicated(self) -> int:
        """Weights that FSDP does not shard."""
        return self.stage_numel + self.dense_numel


def layer_weights(
    model: ModelConfig, kind: LayerKind, plan: Plan, at: dict[str, int], lora: LoraConfig | None = None
) -> Module:
    """Those of a layer of ``kind`` on the rank at the coordinates ``at``; with the adapters of ``lora``."""
    return _module(_shapes(model, lora)[0][kind], plan, at)  # pyright: ignore[reportArgumentType]  (see below)


def nextn_weights(model: ModelConfig, plan: Plan, at: dict[str, int]) -> Module:
    """Those of one module for multi-token prediction."""
    named = _shapes(model)[1]  # pyright: ignore[reportArgumentType]  (see below)
    return _module(tuple((name, shape) for name, shape in named if name.startswith("mtp.0.")), plan, at)


def outer_weights(model: ModelConfig, plan: Plan, at: dict[str, int], *, first: bool, last: bool) -> Module:
    """The embedding where the stage is the ``first``, final norm and output projection where it is the ``last``."""
    shapes = _shapes(model)[1]  # pyright: ignore[reportArgumentType]  (frozen pydantic models have hashes)
    embeds = first or model.tie_word_embeddings
    wanted = {"embed_tokens.weight": embeds, "norm.weight": last, "lm_head.weight": last, "score.weight": last}
    return _module(tuple((name, shape) for name, shape in shapes if wanted.get(name)), plan, at)


def _module(named: tuple[tuple[str, Shape], ...], plan: Plan, at: dict[str, int]) -> Module:
    by_mesh: dict[str, list[Shape]] = {}
    stage = dense = adapters = 0
    for name, whole in named:
        local, kind = part_of(name, whole, plan, at).local_shape, kind_of(name)
        if kind == "replicated":
            stage += math.prod(local)
        elif kind == "head_norm":
            dense += math.prod(local)
        elif kind == "adapter":
            adapters += math.prod(local)
        else:
            by_mesh.setdefault({"tensor": "dense", "experts": "experts", "shared": "stage"}[kind], []).append(local)
    context = at["dp_shard"] * plan.cp + at["cp"]
    places = {
        "dense": (plan.dp_shard * plan.cp, context),
        "stage": (plan.replica, context * plan.tp + at["tp"]),
        "experts": (plan.edp, at["edp"]),
    }
    order = ("dense", "experts", "stage")
    groups = [ShardedGroup(f"fsdp_{mesh}", *places[mesh], tuple(by_mesh[mesh])) for mesh in order if mesh in by_mesh]
    return Module(tuple(groups), stage, dense, adapters, all(name.startswith("layers.") for name, _ in named))


@functools.lru_cache(maxsize=8)
def _shapes(
    model: ModelConfig, lora: LoraConfig | None = None
) -> tuple[dict[LayerKind, tuple[tuple[str, Shape], ...]], tuple[tuple[str, Shape], ...]]:
    """Names and shapes of the weights of one layer of every kind, as ``layers.0.x``, and of what is outside layers."""
    kinds = tuple(dict.fromkeys(model.layer_kinds()))
    mixers, mlps = zip(*kinds, strict=True)
    few = model.model_copy(update={"num_hidden_layers": len(kinds), "layer_types": mixers, "mlp_types": mlps})
    if few.num_nextn_predict_layers:
        mixer, mlp = model.nextn_kind()
        few = few.model_copy(update={"nextn_layer_type": mixer, "nextn_mlp_type": mlp})
    with torch.device("meta"):
        modules = HybridLM(few)
    if lora is not None:
        add_lora(modules, lora)
    named = [(name, tuple(weight.shape)) for name, weight in modules.named_parameters()]
    found = {
        kind: tuple((name, shape) for name, shape in named if name.startswith(f"layers.{index}."))
        for index, kind in enumerate(kinds)
    }
    return found, tuple((name, shape) for name, shape in named if not name.startswith("layers."))


@functools.lru_cache(maxsize=256)
def stages(model: ModelConfig, num_stages: int, seq_len: int) -> tuple[range, ...]:
    """The layers of each pipeline stage."""
    return tuple(split_layers(model, num_stages, seq_len)) if num_stages > 1 else (range(model.num_hidden_layers),)


@functools.lru_cache(maxsize=256)
def unevenness(model: ModelConfig, pp: int, num_stages: int, seq_len: int) -> float:
    """How many times the mean the work of the pipeline rank with most of it is."""
    costs = layer_costs(model, seq_len)
    of_stage = [sum(costs[layers.start : layers.stop]) for layers in stages(model, num_stages, seq_len)]  # pyright: ignore[reportArgumentType]
    of_rank = [sum(of_stage[rank::pp]) for rank in range(pp)]
    return max(of_rank) * pp / sum(of_rank)
