"""Layers dealt to stages: by hand, and against every split there is."""

import random
from itertools import combinations, pairwise

import pytest

from leyden.model import ModelConfig, count_model, preset
from leyden.parallel.pipeline import layer_costs, split_layers
from leyden.parallel.pipeline.split import best_split

LIGHTNING, SOFTMAX = "linear_attention", "full_attention"


def _config(*layer_types: str, **changes: object) -> ModelConfig:
    shape = {"num_hidden_layers": len(layer_types), "layer_types": layer_types, "vocab_size": 1}
    return ModelConfig.parse({**shape, **changes}, "test")


def _sizes(runs: list[range]) -> list[int]:
    assert [layer for run in runs for layer in run] == list(range(runs[-1].stop))
    return [len(run) for run in runs]


def _exhaustive(costs: list[int], num_stages: int) -> tuple[int, ...]:
    """Where the stages of the best of all splits stop."""

    def worth(stops: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        stages = [sum(costs[start:stop]) for start, stop in pairwise((0, *stops))]
        return max(stages), sum(cost**2 for cost in stages), stops

    inner = combinations(range(1, len(costs)), num_stages - 1)
    return min(worth((*stops, len(costs))) for stops in inner)[2]


def test_the_best_of_all_splits_is_found() -> None:
    drawn = random.Random(0)
    for _ in range(300):
        costs = [drawn.choice([1, 2, 2, 3, 9]) for _ in range(drawn.randint(1, 9))]
        num_stages = drawn.randint(1, len(costs))
        assert best_split(costs, num_stages) == _exhaustive(costs, num_stages), (costs, num_stages)


def test_costs_add_up_to_the_model() -> None:
    config = preset("text-01")
    for length in (1, 4096, 1_000_001):
        assert sum(layer_costs(config, length)) == 2 * count_model(config).forward_flops_per_token(length)


def test_costs_by_hand() -> None:
    """D = 4, 2 heads of 3 and 1 of keys and values, 3 experts of width 5 of which 2 are met, vocabulary 7."""
    shape = {"hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 3, "rotary_dim": 2}
    experts = {"intermediate_size": 5, "num_local_experts": 3, "num_experts_per_tok": 2}
    config = _config(LIGHTNING, SOFTMAX, **{**shape, **experts, "vocab_size": 7})
    feed_forward = 2 * (2 * 3 * 4 * 5 + 3 * 4)
    lightning = 2 * (4 * 18 + 2 * 4 * 6) + 4 * 2 * 3 * 3
    softmax = 2 * (2 * 4 * 6 + 2 * 4 * 3) + 4 * 6 * (9 + 1) / 2
    projection = 2 * 4 * 7
    assert layer_costs(config, 9) == [2 * (feed_forward + lightning), 2 * (feed_forward + softmax + projection)]


def test_equal_layers_are_dealt_evenly_and_the_first_stages_are_the_shorter() -> None:
    assert best_split([1] * 10, 4) == (2, 4, 7, 10)
    assert best_split([1] * 10, 1) == (10,)
    assert best_split([1] * 10, 10) == tuple(range(1, 11))
    # One dear layer leaves the others free: they are dealt evenly all the same.
    assert best_split([1, 1, 1, 1, 9], 3) == (2, 4, 5)


def test_a_softmax_layer_weighs_more_the_longer_the_row() -> None:
    config = _config(SOFTMAX, *[LIGHTNING] * 5)
    assert _sizes(split_layers(config, 2, 1)) == [3, 3]
    assert _sizes(split_layers(config, 2, 10_000_000)) == [1, 5]


def test_the_output_projection_shortens_the_last_stage() -> None:
    config = _config(*[LIGHTNING] * 8)
    one_layer = layer_costs(config, 1)[0] // 4 // config.hidden_size
    assert _sizes(split_layers(config, 2, 1)) == [4, 4]
    assert _sizes(split_layers(config.model_copy(update={"vocab_size": 4 * one_layer}), 2, 1)) == [6, 2]


def test_a_stage_without_a_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 layers .* make 1 to 3 pipeline stages; given 4"):
        split_layers(_config(*[LIGHTNING] * 3), 4, 1)
    with pytest.raises(ValueError, match="given 0"):
        split_layers(_config(LIGHTNING), 0, 1)
