"""FSDP2 over what a rank holds, and the weights of a rank as the optimizer and checkpoints see them.

Three meshes, since three kinds of weights are held alike by different ranks: attention and vocabulary over data and
context ranks, experts over expert copies, the shared expert over all ranks of a stage's copy. Norms and routers, less
than 0.01 % of the weights, stay whole on every rank, and their gradients are summed once a step.

Gradients are sums over tokens, never means: FSDP is told to add, and the step divides once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from leyden.model import Mixer
from leyden.parallel.mesh import Mesh
from leyden.parallel.part import Part
from leyden.parallel.weights import adapter_group, has_load, kind_of

_MESH = {"tensor": "dense", "experts": "experts", "shared": "stage"}
"""The mesh of :attr:`Mesh.fsdp` that shards each kind; the others are replicated."""


@dataclass(frozen=True, eq=False)
class Weight:
    """What a rank holds of one weight.

    Attributes:
        parameter: the model's; a DTensor where FSDP shards it.
        part: of the whole weight.
        group: over which its gradient has yet to be summed after a backward; None: it is complete.
        counted: whether this rank's part enters a sum over all ranks (a norm, say); False where another's is the same.
    """

    parameter: nn.Parameter
    part: Part
    group: dist.ProcessGroup | None = None
    counted: bool = True

    @property
    def local(self) -> torch.Tensor:
        """The rank's tensor, in the parameter's own memory."""
        return local(self.parameter.detach())

    def take_gradient(self, dtype: torch.dtype) -> torch.Tensor:
        """The rank's gradient in ``dtype``, taken away from the parameter; zeros where it has none."""
        gradient, self.parameter.grad = self.parameter.grad, None
        return torch.zeros_like(self.local, dtype=dtype) if gradient is None else local(gradient).to(dtype)


class Weights(Mapping[str, Weight]):
    """The trainable weights of a rank, by name.

    Args:
        weights: by name, as in the whole model.
        world: over which norms are summed; None: one process.
        stage: the ranks that hold parts of the same weights; None: this one alone.
    """

    def __init__(
        self,
        weights: Mapping[str, Weight],
        world: dist.ProcessGroup | None = None,
        stage: dist.ProcessGroup | None = None,
    ) -> None:
        self._weights = dict(weights)
        self._world = world
        self.stage = stage

    @classmethod
    def alone(cls, model: nn.Module) -> "Weights":
        """Those of a model that one process holds."""
        named = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
        return cls({name: Weight(p, Part.whole(tuple(p.shape))) for name, p in named})

    def __getitem__(self, name: str) -> Weight:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(iter(self.values())).parameter.device

    def sum_gradients(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Complete, in place, the gradients that FSDP has not summed: one all-reduce for each group of ranks."""
        by_group: dict[dist.ProcessGroup, list[torch.Tensor]] = {}
        for name, gradient in gradients.items():
            group = self[name].group
            if group is not None:
                by_group.setdefault(group, []).append(gradient)
        for group, tensors in by_group.items():
            flat = torch.cat([tensor.flatten() for tensor in tensors]).to(self.device)
            dist.all_reduce(flat, group=group)
            pieces = flat.split([tensor.numel() for tensor in tensors])
            for tensor, piece in zip(tensors, pieces, strict=True):
                tensor.copy_(piece.view_as(tensor))

    def norm(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The Euclidean norm of all ranks' tensors together, one a weight, each weight once and no load: a scalar."""
        counted = [t for name, t in tensors.items() if self[name].counted and t.numel() and not has_load(name)]
        # Row by row: over a million float32 squares at once, PyTorch's CPU norm is off by 3e-5, and differently so for
        # every cut of the weights.
        total = nn.utils.get_total_norm([torch.linalg.vector_norm(t, dim=-1) for t in counted])
        if self._world is None:
            return total
        square = total.to(self.device, next(iter(tensors.values())).dtype).square()
        dist.all_reduce(square, group=self._world)
        return square.sqrt()


def install_fsdp(model: nn.Module, mesh: Mesh, dtype: torch.dtype) -> None:
    """Shard the weights of ``model`` over the meshes of their kinds, and compute in ``dtype``.

    Args:
        model: with ``layers``, each gathered by itself, and around them the embedding and the output projection.
        mesh: of the ranks.
        dtype: of the gathered weights; the shards keep theirs.
    """
    # What they load would take another second of the start of every command.
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import Shard

    settings = mesh.plan.settings
    reduce_dtype = dtype if settings.reduce_dtype == "auto" else getattr(torch, settings.reduce_dtype)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    ignored = {p for name, p in model.named_parameters() if _is_replicated(name)}

    def shard(module: nn.Module, name: str, reshard: bool | None) -> None:
        over = mesh.fsdp[name]
        fully_shard(
            module,
            mesh=over,
            reshard_after_forward=reshard,
            mp_policy=policy,
            ignored_params=ignored,
            shard_placement_fn=lambda parameter: Shard(shard_dim(tuple(parameter.shape), over.size(-1))),
        )

    further = getattr(model, "mtp", None)  # modules for multi-token prediction
    for layer in (*model.get_submodule("layers").children(), *(() if further is None else further.children())):
        mixer = next(module for module in layer.modules() if isinstance(module, Mixer))
        alike = {f"self_attn.{name.removesuffix('.weight')}" for name in mixer.whole}
        for name, module in layer.named_modules():
            local = name.removeprefix("block.")
            if local == "mlp.experts":
                shard(module, "experts", settings.reshard_after_forward)
            elif local in ("mlp.shared", "eh_proj") or local in alike:
                shard(module, "stage", settings.reshard_after_forward)
        shard(layer, "dense", settings.reshard_after_forward)
    vision = getattr(model, "vision", None)
    if vision is not None:
        for layer in vision.tower.layers:
            shard(layer, "stage", settings.reshard_after_forward)
        shard(vision, "stage", settings.reshard_after_forward)
    shard(model, "dense", False)
    for method in ("features", "token_nll", "cross_entropy"):
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def shard_dim(shape: tuple[int, ...], count: int) -> int:
    """The dim that FSDP cuts into ``count`` chunks: the first that divides evenly, else 0, unevenly."""
    return next((dim for dim, size in enumerate(shape) if size % count == 0), 0)


def sharded_part(name: str, part: Part, mesh: Mesh) -> Part:
    """What is left of ``part`` of the weight ``name`` once FSDP has sharded it."""
    if _is_replicated(name):
        return part
    over = mesh.fsdp[_MESH[kind_of(name)]]
    dim = shard_dim(part.local_shape, over.size(-1))
    return part.chunk(dim, over.get_local_rank(over.ndim - 1), over.size(-1))


def summed_over(name: str, mesh: Mesh) -> str | None:
    """The name of the group over which the gradient of ``name`` is summed after the backward; None: FSDP does it."""
    if not _is_replicated(name):
        return None
    kind = kind_of(name)
    return adapter_group(name) if kind == "adapter" else "dense" if kind == "head_norm" else "stage"


def is_counted(name: str, mesh: Mesh) -> bool:
    """Whether no rank before this one holds the same part of ``name``."""
    group = summed_over(name, mesh)
    return mesh.at["dp_replicate"] == 0 if group is None else mesh.index(group) == 0


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor, in its own memory."""
    to_local = getattr(tensor, "to_local", None)  # of a DTensor
    return tensor if to_local is None else to_local()


def _is_replicated(name: str) -> bool:
    """Norms, routers and adapters: float32, and kept out of FSDP. What belongs to a mixer's heads is cut with them."""
    return kind_of(name) in ("replicated", "head_norm", "adapter")
