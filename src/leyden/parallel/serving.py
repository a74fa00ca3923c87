"""A model that ranks compute together to serve it: divided as in training, without what only training needs.

Tensor ranks have the heads, with their states, keys and values, and the vocabulary; the experts are divided over the
same ranks, by number (ep) or by width (etp). No FSDP: a rank holds its part and nothing of another's. Data, context
and pipeline axes are for training: more copies are more servers.
"""

import torch
import torch.distributed as dist
from torch.nn.functional import pad

from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig
from leyden.model.losses import soft_capped
from leyden.model.rows import GRAIN
from leyden.parallel.collectives import gather_rows
from leyden.parallel.experts import install_experts
from leyden.parallel.mesh import Mesh
from leyden.parallel.part import Part
from leyden.parallel.plan import ParallelConfig, Plan
from leyden.parallel.planner.check import problems_of
from leyden.parallel.ranks import StageRanks
from leyden.parallel.tensor import install_tensor
from leyden.parallel.vocabulary import VocabularyProjection
from leyden.parallel.weights import cut_weights


def serving_plan(config: ParallelConfig, world: int, model: ModelConfig) -> Plan:
    """The plan of ``config`` on ``world`` ranks that serve one copy of a model.

    ``tp`` left out becomes all of them. Where neither ``ep`` nor ``etp`` is said, ranks have different experts if
    their number divides evenly, else a part of each.

    Raises:
        UserError: an axis that is for training, or sizes that do not divide the model; all that is wrong.
    """
    said = "tp" in config.model_fields_set
    tp = config.tp if said else world
    ep, etp = config.ep, config.etp
    if ep == etp == 1 and model.num_local_experts:
        ep, etp = (1, tp) if model.num_local_experts % tp else (tp, 1)
    plan = Plan(tp=tp, ep=ep, etp=etp, settings=config)
    problems = [
        f"{axis} = {getattr(config, axis)} is for training; start one server a copy and leave it at 1."
        for axis in ("pp", "dp_replicate", "dp_shard", "cp")
        if (getattr(config, axis) or 1) > 1
    ]
    if GRAIN % tp:  # the rows of a step, which tensor ranks divide evenly
        problems.append(f"tp = {tp} does not divide {GRAIN}, of which the rows of a step are a multiple.")
    if said and tp != world:
        problems.append(f"tp = {tp} cannot be kept: heads are shared by all {world} ranks; leave tp out.")
    problems += problems_of(plan, world, model)
    if problems:
        lines = [f"this model cannot be served by {world} ranks so:", *(f"  - {problem}" for problem in problems)]
        raise UserError("\n".join([*lines, f"  Numbers of ranks that can serve it: {_worlds(model)}."]))
    return plan


def _worlds(model: ModelConfig) -> str:
    """The numbers of ranks that a model is served by without any axis being said."""

    def serves(world: int) -> bool:
        ep, etp = (1, world) if model.num_local_experts % world else (world, 1)
        shared = (ep, etp) if model.num_local_experts else (1, 1)
        return not problems_of(Plan(tp=world, ep=shared[0], etp=shared[1]), world, model)

    return ", ".join(str(world) for world in range(1, GRAIN + 1) if GRAIN % world == 0 and serves(world))


def divide(model: HybridLM, mesh: Mesh) -> dict[str, Part]:
    """Leave ``model`` this rank's part of itself, ready for :meth:`HybridLM.read` and ``logits`` on all ranks together.

    Args:
        model: plain and whole, on any device, meta included.
        mesh: of a plan by :func:`serving_plan`.

    Returns:
        What the rank has of each parameter, by name.
    """
    parts = cut_weights(model, mesh)
    model.ranks = StageRanks(mesh)
    install_tensor(model, mesh)
    install_experts(model, mesh)
    group, words = mesh.groups["tp"], model.config.vocab_size
    if group is not None:
        model.set_submodule("lm_head", GatheredProjection(model.lm_head.weight, words, group, model.lm_head.softcap))
    model.requires_grad_(False)  # or the exchange of tokens would keep what a backward needs
    return parts


class GatheredProjection(VocabularyProjection):
    """The divided output projection, whose ranks tell each other the logits of their words."""

    def __init__(
        self, weight: torch.Tensor, vocab_size: int, group: dist.ProcessGroup, softcap: float | None = None
    ) -> None:
        bounds = [vocab_size * rank // group.size() for rank in range(group.size() + 1)]
        super().__init__(weight, bounds[group.rank()], vocab_size, group, softcap)
        self._words = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, D], the same on every tensor rank, to [R, V] on each of them; without a gradient."""
        own = soft_capped(hidden @ self.weight.t(), self.softcap)
        whole = gather_rows(pad(own, (0, self._widest - own.shape[1])), 1, self._group)
        parts = whole.split(self._widest, dim=1)
        return torch.cat([part[:, :count] for part, count in zip(parts, self._words, strict=True)], dim=1)
