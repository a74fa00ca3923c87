"""The terms of which the planner's sums of memory and of traffic are made."""

from collections import Counter
from dataclasses import dataclass

from leyden.parallel.planner.rank import Rank

Bytes = Counter[tuple[str, str]]
"""By (axis, operation)."""


@dataclass(frozen=True)
class Half:
    """Attention, or the feed-forward.

    Attributes:
        kept: bytes from the forward to the backward.
        products: of these and of the outputs, what selective recomputation keeps.
        forward: bytes that the forward needs for a moment beside what it keeps.
        backward: bytes that the backward needs for a moment, gradients of weights not counted.
    """

    kept: float
    products: float
    forward: float
    backward: float


@dataclass(frozen=True)
class Passes:
    """What part of a layer hands over in its forward and in its backward.

    Attributes:
        forward: in the forward.
        backward: in the backward.
        ends: whether the forward ends with its reduce-scatter, behind the last tensor that the backward needs:
            recomputation stops before it.
    """

    forward: Bytes
    backward: Bytes
    ends: bool = False

    def again(self, mode: str) -> Bytes:
        """What a recomputation of the forward hands over."""
        kept = {("tp", "reduce_scatter")} if self.ends else set()
        if mode == "selective":  # collectives that are functions of values
            kept |= {("ep", "all_to_all"), ("etp", "all_to_all"), ("tp", "reduce_scatter")}
        return Counter({key: num_bytes for key, num_bytes in self.forward.items() if key not in kept})


def divided(rank: Rank) -> tuple[Bytes, Bytes]:
    """What tensor ranks divide: tokens gathered at its entrance, reduced and scattered at its exit."""
    if rank.plan.tp == 1:
        return Counter(), Counter()
    one = rank.model.hidden_size * rank.dtype.itemsize
    there: Bytes = Counter({("tp", "all_gather"): rank.own * one, ("tp", "reduce_scatter"): rank.tokens * one})
    return there, there
