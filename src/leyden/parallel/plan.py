"""How ranks divide the work: the ``[parallel]`` section of a recipe, and the plan it makes for a number of ranks.

The axes are those of MiniMax-01 (arXiv 2501.08313, section 3): ``world = PP x DP x CP x TP = PP x EDP x ETP x EP``. The
ranks of a pipeline stage are laid out twice: for attention as data, context and tensor ranks, for the experts as copies
(EDP), expert and expert-tensor ranks, independent of the former.
"""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from leyden.core.config import Config
from leyden.core.errors import UserError


class ParallelConfig(Config):
    """The ``[parallel]`` section: sizes of the axes, and how each works."""

    dp_replicate: int = Field(default=1, ge=1)
    """Copies of the sharded model (hybrid sharding)."""
    dp_shard: int | None = Field(default=None, ge=1)
    """Ranks that share a copy's weights and have different documents. None: those that the other axes leave."""
    cp: int = Field(default=1, ge=1)
    """Ranks that share a row: LASP+ in lightning layers, ring attention in softmax layers."""
    tp: int = Field(default=1, ge=1)
    """Ranks that share heads, a dense feed-forward's width and the vocabulary."""
    pp: int = Field(default=1, ge=1)
    """Stages of layers."""
    ep: int = Field(default=1, ge=1)
    """Ranks that share the experts of a layer."""
    etp: int = Field(default=1, ge=1)
    """Ranks that share the hidden width of an expert."""

    pipeline_schedule: Literal["1f1b", "interleaved"] = "1f1b"
    stages_per_rank: int = Field(default=1, ge=1)
    """Stages of one pipeline rank; more than 1 with ``interleaved`` alone."""
    token_groups: int = Field(default=1, ge=1)
    """Groups into which a rank's tokens are cut, so that the exchange of one overlaps the experts of another."""
    capacity: Literal["global", "local"] = "global"
    """Whether ranks spend an expert's capacity together, as one process would, or each its own share of it."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """``full`` keeps a layer's input alone and computes the layer again in the backward; ``selective`` also keeps the
    results of matrix products, attention and exchanges."""
    compile: bool = False
    """Compile every layer with torch.compile."""
    reshard_after_forward: bool = True
    """Free a layer's gathered weights after its forward and gather them again for its backward (ZeRO-3)."""
    reduce_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of gradients on the wire; ``auto``: that of the computation. Master weights and sums over micro-batches are
    float32."""
    offload_optimizer: bool = False
    """Keep master weights and moments in host memory, and step there."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """How long a rank may make no progress before the run stops and names it."""


@dataclass(frozen=True)
class Plan:
    """The sizes of all axes, whose product is the number of ranks."""

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    etp: int = 1
    settings: ParallelConfig = field(default_factory=ParallelConfig)

    @property
    def dp(self) -> int:
        """Ranks that have different documents."""
        return self.dp_replicate * self.dp_shard

    @property
    def world(self) -> int:
        """All ranks."""
        return self.pp * self.dp * self.cp * self.tp

    @property
    def stage(self) -> int:
        """The ranks of one pipeline stage."""
        return self.dp * self.cp * self.tp

    @property
    def replica(self) -> int:
        """The ranks of one copy of one stage: over these, no weight is held twice."""
        return self.dp_shard * self.cp * self.tp

    @property
    def edp(self) -> int:
        """Ranks of a replica that hold, before sharding, the same part of the experts."""
        return self.replica // (self.ep * self.etp)

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline, over all ranks."""
        return self.pp * self.settings.stages_per_rank

    def __str__(self) -> str:
        names = ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep", "etp")
        return " ".join(f"{name}={getattr(self, name)}" for name in names if getattr(self, name) > 1) or "one rank"


def make_plan(config: ParallelConfig, world: int) -> Plan:
    """The plan of ``config`` on ``world`` ranks; that it fits a model is for :func:`leyden.parallel.check_plan`.

    Raises:
        UserError: the axes do not multiply to ``world``.
    """
    fixed = config.pp * config.dp_replicate * config.cp * config.tp
    dp_shard = config.dp_shard or max(1, world // fixed)
    plan = Plan(config.pp, config.dp_replicate, dp_shard, config.cp, config.tp, config.ep, config.etp, settings=config)
    if plan.world != world:
        raise UserError(
            f"[parallel] asks for pp x dp_replicate x dp_shard x cp x tp = {config.pp} x {config.dp_replicate} x "
            f"{dp_shard} x {config.cp} x {config.tp} = {plan.world} ranks and there are {world}; start {plan.world} "
            f"(torchrun --nproc-per-node), or change the axes so that their product is {world}."
        )
    return plan
