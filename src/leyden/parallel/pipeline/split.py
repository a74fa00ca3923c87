"""Which layers each pipeline stage has: contiguous runs, so that the stages cost alike."""

import math
from collections.abc import Callable
from itertools import accumulate, pairwise

from leyden.model import ModelConfig, count_model


def split_layers(config: ModelConfig, num_stages: int, length: int) -> list[range]:
    """The layers of each stage, of which the dearest costs as little as it can.

    Of several such splits, the most even one (the least sum of squared costs) is taken; of several such, the one whose
    first stages are shortest, since they hold the most micro-batches at once.

    Args:
        config: the model.
        num_stages: over all ranks.
        length: tokens of a document; softmax layers cost more the longer it is.

    Raises:
        ValueError: more stages than layers.
    """
    costs = layer_costs(config, length)
    if not 1 <= num_stages <= len(costs):
        raise ValueError(
            f"{len(costs)} layers (num_hidden_layers) make 1 to {len(costs)} pipeline stages; given {num_stages}."
        )
    return [range(start, stop) for start, stop in pairwise((0, *best_split(costs, num_stages)))]


def layer_costs(config: ModelConfig, length: int) -> list[int]:
    """Twice the floating-point operations a token of each layer's forward pass, averaged over ``length`` tokens.

    Counted as in :meth:`leyden.model.ModelCount.forward_flops_per_token`; twice, to be whole numbers. The last layer
    has the output projection with it; the embedding, which only looks up, costs nothing.
    """
    projection = 2 * count_model(config).output_parameters
    of_kind, kinds = {}, config.layer_kinds()
    for kind in set(kinds):
        mixer, mlp = kind
        shape = {"num_hidden_layers": 1, "layer_types": (mixer,), "mlp_types": (mlp,)}
        alone = count_model(config.model_copy(update=shape))
        of_kind[kind] = round(2 * (alone.forward_flops_per_token(length) - projection))
    costs = [of_kind[kind] for kind in kinds]
    costs[-1] += 2 * projection
    return costs


def best_split(costs: list[int], num_stages: int) -> tuple[int, ...]:
    """Where each stage of the split stops that :func:`split_layers` describes.

    Args:
        costs: of the layers.
        num_stages: at most as many.
    """
    dearest, _ = _best(costs, num_stages, max)
    return _best(costs, num_stages, lambda total, cost: total + cost**2 if cost <= dearest else math.inf)[1]


def _best(costs: list[int], num_stages: int, add: Callable[[float, int], float]) -> tuple[float, tuple[int, ...]]:
    """The least value of a split and where its stages stop, by dynamic programming over the stages.

    Args:
        costs, num_stages: as above.
        add: the value of some stages and one more that costs so much; the less the stages are worth, the less it is.
    """
    until = [0, *accumulate(costs)]
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0, ())}  # of the first layers, by their number
    for _ in range(num_stages):
        best = {
            stop: min(
                (add(value, until[stop] - until[start]), (*stops, stop))
                for start, (value, stops) in best.items()
                if start < stop
            )
            for stop in range(min(best) + 1, len(until))
        }
    return best[len(costs)]
