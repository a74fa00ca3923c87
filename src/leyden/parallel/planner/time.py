"""How long a step takes: the dearest of computing and every axis's communication, and what of it is hidden.

The model is a roofline, meant to rank plans and to show which axis binds:

- Computing takes the step's floating-point operations (three times the forward; with ``full`` recomputation four
  times) over the rank's rate, on the pipeline rank whose stages cost most. MFU is the share of that rate which goes
  into the operations that the model needs, recomputation left out.
- A collective among n ranks takes what each rank sends over its link: (n - 1) / n of the bytes handed to a
  reduce-scatter or all-to-all, n - 1 times those handed to an all-gather, 2 (n - 1) / n of those of an all-reduce,
  all bytes of a send. Its link is that between nodes where its ranks are not all within one, else that within.
- FSDP's collectives, the states of LASP+, the ring's keys, the pipeline's sends, and the exchanges of experts where a
  rank has several groups of tokens hide behind computing; tensor ranks' do not, nor do the exchanges of a single group
  or the sums at the end of a step. Hidden collectives over one kind of link follow each other.
- A pipeline of p stages with m micro-batches and v stages a rank idles (p - 1) / (v m) of the time that it works
  (arXiv 2104.04473, section 2.2).

Latency, contention between links and the imbalance of experts are left out.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from leyden.model import count_model
from leyden.parallel.plan import Plan
from leyden.parallel.planner.rank import Rank
from leyden.parallel.planner.sizes import unevenness
from leyden.parallel.planner.traffic import predict_traffic

_EXPOSED = {"tp", "stage", "dense", "world"}


@dataclass(frozen=True)
class Machine:
    """What a rank computes and communicates with; the defaults are an H800's or H100's.

    Attributes:
        flops_per_second: that matrix products reach, of one rank.
        intra_bytes_per_second: that a rank sends to those of its node (NVLink).
        inter_bytes_per_second: that a rank sends to those of other nodes.
        ranks_per_node: consecutive ranks share a node.
        memory_bytes: of a rank.
    """

    flops_per_second: float = 600e12
    intra_bytes_per_second: float = 160e9
    inter_bytes_per_second: float = 45e9
    ranks_per_node: int = 8
    memory_bytes: float = 80e9


@dataclass(frozen=True)
class StepTime:
    """One optimizer step.

    Attributes:
        seconds: of the whole.
        compute_seconds: that a rank computes.
        axis_seconds: that each axis communicates.
        idle_seconds: that the pipeline waits.
        binds: ``compute``, or the axis or the pipeline that adds most to computing.
        mfu: the share of the machine's rate that goes into the operations that the model needs.
    """

    seconds: float
    compute_seconds: float
    axis_seconds: dict[str, float]
    idle_seconds: float
    binds: str
    mfu: float


def predict_time(rank: Rank, machine: Machine) -> StepTime:
    """Of the rank's step; what it communicates stands for every other rank's."""
    plan, step = rank.plan, rank.step
    needed = count_model(rank.model).training_flops_per_token(step.seq_len) * step.tokens / plan.world
    again = 4 / 3 if plan.settings.activation_checkpointing == "full" else 1.0
    uneven = unevenness(rank.model, plan.pp, plan.num_stages, step.seq_len)  # pyright: ignore[reportArgumentType]
    compute = needed * again * uneven / machine.flops_per_second
    axes: Counter[str] = Counter()
    for (axis, operation), num_bytes in predict_traffic(rank).items():
        axes[axis] += num_bytes * _travels(plan, axis, operation) / _rate(plan, axis, machine)  # type: ignore[assignment]
    exposed_axes = _EXPOSED if plan.settings.token_groups > 1 else _EXPOSED | {"ep", "etp"}
    exposed = sum(seconds for axis, seconds in axes.items() if axis in exposed_axes)
    hidden: Counter[bool] = Counter()
    for axis, seconds in axes.items():
        if axis not in exposed_axes:
            hidden[spans_nodes(plan, axis, machine)] += seconds  # type: ignore[assignment]
    busy = max(compute, *hidden.values(), 0.0) + exposed
    idle = busy * (plan.pp - 1) / (plan.settings.stages_per_rank * step.num_micro_batches)
    added = {axis: seconds for axis, seconds in axes.items() if axis in exposed_axes}
    added |= {axis: seconds for axis, seconds in axes.items() if axis not in added and max(hidden.values()) > compute}
    binds = max([("compute", compute), ("pipeline", idle), *added.items()], key=lambda pair: pair[1])[0]
    mfu = needed / ((busy + idle) * machine.flops_per_second)
    return StepTime(busy + idle, compute, dict(axes), idle, binds, mfu)


def _travels(plan: Plan, axis: str, operation: str) -> float:
    """How many times the bytes handed over leave the rank."""
    ranks = group_size(plan, axis)
    return {
        "all_gather": ranks - 1.0,
        "reduce_scatter": (ranks - 1) / ranks,
        "all_to_all": (ranks - 1) / ranks,
        "all_reduce": 2 * (ranks - 1) / ranks,
        "send": 1.0,
    }[operation]


def group_size(plan: Plan, axis: str) -> int:
    """Ranks of a group of ``axis``."""
    return _Groups(plan).sizes[axis][0]


def spans_nodes(plan: Plan, axis: str, machine: Machine) -> bool:
    """Whether ranks of one group of ``axis`` are on different nodes."""
    ranks, stride = _Groups(plan).sizes[axis]
    return ranks * stride > machine.ranks_per_node


def _rate(plan: Plan, axis: str, machine: Machine) -> float:
    return machine.inter_bytes_per_second if spans_nodes(plan, axis, machine) else machine.intra_bytes_per_second


@dataclass(frozen=True)
class _Groups:
    """Sizes of groups and the distance between neighbours in them (:func:`leyden.parallel.mesh.start_mesh`)."""

    plan: Plan

    @cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(ranks, distance) by axis."""
        plan = self.plan
        return {
            "tp": (plan.tp, 1),
            "cp": (plan.cp, plan.tp),
            "etp": (plan.etp, 1),
            "ep": (plan.ep, plan.etp),
            "pp": (plan.pp, plan.stage),
            "stage": (plan.stage, 1),
            "dense": (plan.dp * plan.cp, plan.tp),
            "world": (plan.world, 1),
            "fsdp_dense": (plan.dp_shard * plan.cp, plan.tp),
            "fsdp_stage": (plan.replica, 1),
            "fsdp_experts": (plan.edp, plan.ep * plan.etp),
            "copies_dense": (plan.dp_replicate, plan.replica),
            "copies_stage": (plan.dp_replicate, plan.replica),
            "copies_experts": (plan.dp_replicate, plan.replica),
        }
