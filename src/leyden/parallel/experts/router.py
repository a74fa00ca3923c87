"""The global router (arXiv 2501.08313, section 3.1): an expert's capacity is that of all ranks' tokens together.

Where each rank spends its own share of the capacity, a rank drops tokens of the experts that its documents like while
other ranks leave theirs idle. Here the ranks first exchange how many tokens wait for every expert, and drop what one
process with all tokens would drop, no more. What they exchange does not grow with the number of tokens: counts, and
where the most probable assignments are to be kept, histograms in which all ranks find the same threshold.
"""

from dataclasses import replace

import torch
import torch.distributed as dist

from leyden.model import ModelConfig
from leyden.ops import Routing
from leyden.ops.experts.sort import sort_by_expert
from leyden.parallel.collectives import gather_rows, sum_over

_DIGIT_BITS = 8
"""Bits of a probability that one round finds: 4 rounds for float32, 8 for float64, each a sum of [E, 256] int32."""


class GlobalCapacity:
    """:func:`leyden.model.experts.drop` with the capacity of the tokens of all ranks.

    These stand one behind the other in the order of ranks; what is kept, ties included, is what
    :func:`leyden.ops.drop_over_capacity` keeps of them on one process. The host never waits for a GPU.

    Args:
        group: the ranks that share a micro-batch.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def __call__(self, routing: Routing, config: ModelConfig) -> Routing:
        """Drop what is over capacity; all ranks call this together.

        Args:
            routing: of this rank's tokens over all experts.
            config: ``capacity_factor`` (None: nothing is dropped) and ``token_drop``.
        """
        if config.capacity_factor is None:
            return routing
        with torch.no_grad():
            keep = self._earliest if config.token_drop == "position" else self._most_probable
            kept = keep(routing, config)
        return replace(routing, weights=routing.weights * kept, kept=kept)

    def _earliest(self, routing: Routing, config: ModelConfig) -> torch.Tensor:
        """[N, k] bool, by position."""
        expert = routing.experts.flatten()
        counts = self._gather(_count(expert, config.num_local_experts))
        room = _capacity(counts.sum(), config) - counts[: self._group.rank()].sum(0)
        return (_places(expert, config.num_local_experts) < room[expert]).view(routing.experts.shape)

    def _most_probable(self, routing: Routing, config: ModelConfig) -> torch.Tensor:
        """[N, k] bool, by probability; of those that tie at the threshold the earliest."""
        expert, num_experts = routing.experts.flatten(), config.num_local_experts
        key = _sort_key(routing.probabilities.gather(1, routing.experts).flatten())
        threshold, tied, left = self._select(expert, key, config)
        expert_if_tied = expert.masked_fill(~tied, num_experts)
        counts = self._gather(_count(expert_if_tied, num_experts + 1)[:-1])
        room = left - counts[: self._group.rank()].sum(0)
        kept = (key > threshold[expert]) | (tied & (_places(expert_if_tied, num_experts) < room[expert]))
        return kept.view(routing.experts.shape)

    def _select(
        self, expert: torch.Tensor, key: torch.Tensor, config: ModelConfig
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The lowest key that every expert keeps, over all ranks: a radix select, from the highest digit.

        Args:
            expert: [M] int64, of this rank's assignments.
            key: [M] int32 or int64, not negative; higher ones are kept first.
            config: the capacity.

        Returns:
            threshold: [E], in the dtype of the keys; without meaning for an expert that nobody chose.
            tied: [M] bool, where the key is the threshold of its expert.
            left: [E] int64, how many of all ranks' tied assignments are kept.
        """
        num_experts, radix = config.num_local_experts, 1 << _DIGIT_BITS
        threshold, left = key.new_zeros(num_experts), None
        tied = torch.ones_like(key, dtype=torch.bool)  # in the digits so far
        for shift in reversed(range(0, 8 * key.itemsize, _DIGIT_BITS)):
            digit = (key >> shift) % radix
            slot = (expert * radix + digit).masked_fill(~tied, num_experts * radix)
            counts = _count(slot, num_experts * radix + 1)[:-1].to(torch.int32)  # half as many bytes on the way
            counts = sum_over(counts, self._group).to(torch.int64).view(num_experts, radix)
            if left is None:  # the first round counts every assignment
                chosen = counts.sum(1)
                left = chosen.minimum(_capacity(chosen.sum(), config))
            at_least = counts.flip(1).cumsum(1).flip(1)  # with this digit or a higher one; at_least[:, 0] >= left
            found = (at_least >= left[:, None]).sum(1, keepdim=True) - 1
            left = left - (at_least - counts).gather(1, found)[:, 0]
            threshold = (threshold << _DIGIT_BITS) | found[:, 0].to(key.dtype)
            tied &= digit == found[expert, 0]
        assert left is not None, "a key has digits"
        return threshold, tied, left

    def _gather(self, counts: torch.Tensor) -> torch.Tensor:
        """[E] to [ranks, E]."""
        return gather_rows(counts[None], 0, self._group)


def _capacity(num_assignments: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """:func:`leyden.ops.expert_capacity` of a number that only the device knows: the same steps in float64."""
    tokens = num_assignments // config.num_experts_per_tok
    assert config.capacity_factor is not None, "checked by the caller"
    share = config.capacity_factor * tokens.double() * config.num_experts_per_tok / config.num_local_experts
    return share.ceil().to(torch.int64)


def _sort_key(probability: torch.Tensor) -> torch.Tensor:
    """Integers in the order of probabilities: the bits of floats that are not negative. NaN is highest, as in sorts."""
    bits = torch.int64 if probability.dtype == torch.float64 else torch.int32
    return (probability.nan_to_num(nan=torch.inf, posinf=torch.inf) + 0.0).view(bits)  # -0.0 becomes 0.0


def _count(index: torch.Tensor, size: int) -> torch.Tensor:
    """[size] int64, how often each index occurs; unlike bincount it does not make the host wait for a GPU."""
    return index.new_zeros(size).scatter_add_(0, index, torch.ones_like(index))


def _places(expert: torch.Tensor, num_experts: int) -> torch.Tensor:
    """[M] int64, how many assignments of the same expert stand before each."""
    _, row_of, ends = sort_by_expert(expert, None, num_experts)
    return row_of - torch.cat([ends.new_zeros(1), ends])[expert]
