"""What is free is divided, and what does not fit is refused with the figures."""

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import PAGE, ModelConfig, Pools
from leyden.serve.config import EngineConfig
from leyden.serve.memory import divide_memory, plan_memory

_MODEL = ModelConfig(max_position_embeddings=10 * PAGE)
_STATE_BYTES, _PAGE_BYTES = Pools.bytes_of(_MODEL, torch.bfloat16)
_LARGE = ModelConfig.parse(
    {
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rotary_dim": 64,
        "max_position_embeddings": 1 << 20,
    },
    "as large as text-01",
)


def test_pages_for_all_sequences_at_their_longest() -> None:
    plan = divide_memory(EngineConfig(max_sequences=3), _MODEL, torch.bfloat16, device_bytes=1 << 40)
    assert (plan.num_states, plan.num_pages) == (3, 30)


def test_or_half_of_what_is_left() -> None:
    left = 8 * _PAGE_BYTES
    config = EngineConfig(max_sequences=3, speculation="prompt", draft_tokens=2)
    plan = divide_memory(config, _MODEL, torch.bfloat16, device_bytes=9 * _STATE_BYTES + left)
    assert (plan.num_states, plan.num_pages) == (9, 4)
    assert plan.cache_bytes == plan.swap_bytes == left // 10


def test_what_is_asked_for_is_taken() -> None:
    config = EngineConfig(max_sequences=3, kv_gigabytes=5 * _PAGE_BYTES / 2**30, cache_gigabytes=0, swap_gigabytes=1)
    plan = divide_memory(config, _MODEL, torch.bfloat16, device_bytes=1 << 40, host_bytes=1 << 31)
    assert (plan.num_pages, plan.cache_bytes, plan.swap_bytes) == (5, 0, 1 << 30)


@pytest.mark.parametrize(
    ("settings", "free_bytes", "host_bytes", "message"),
    [
        ({"max_sequences": 32}, 4 << 30, None, r"8,960\.0 MB for 32 states for max_sequences = 32"),
        (
            {"kv_gigabytes": 30, "max_sequences": 1},
            1 << 34,
            1 << 34,
            r"device has 16,384\.0 MB .* 30,720\.0 MB for 3072 pages",
        ),
        ({"cache_gigabytes": 9, "max_sequences": 1}, 1 << 40, 1 << 33, r"the host has .* 9,216\.0 MB for snapshots"),
        ({"swap_gigabytes": 9, "max_sequences": 1}, 1 << 33, None, r"this machine has .* 9,216\.0 MB for sequences"),
        ({"kv_gigabytes": 0.001, "max_sequences": 1}, 1 << 33, None, r"takes 10\.0 MB, and they were given 1\.0 MB"),
    ],
    ids=["states", "pages", "snapshots", "swapped", "no page"],
)
def test_what_does_not_fit_is_refused(
    settings: dict[str, object], free_bytes: int, host_bytes: int | None, message: str
) -> None:
    config = EngineConfig.parse(settings, "engine")
    with pytest.raises(UserError, match=message):
        divide_memory(config, _LARGE, torch.bfloat16, device_bytes=free_bytes, host_bytes=host_bytes)


@pytest.mark.parametrize("layer", ["linear_attention", "full_attention"])
def test_models_of_one_kind_of_layer(layer: str) -> None:
    model = ModelConfig.parse({"num_hidden_layers": 2, "layer_types": (layer, layer)}, "test model")
    config = EngineConfig(max_sequences=2)
    plan = divide_memory(config, model, torch.float32, device_bytes=1 << 30)
    assert plan.num_states == 2
    assert plan.num_pages > 0


def test_on_this_machine() -> None:
    plan = plan_memory(EngineConfig(max_sequences=2), _MODEL, torch.bfloat16, torch.device("cpu"))
    assert (plan.num_states, plan.num_pages) == (2, 20)
    assert plan.draft_bytes == 0 < plan.cache_bytes
    config = EngineConfig(max_sequences=2, speculation="draft", draft_tokens=3)
    plan = plan_memory(config, _MODEL, torch.bfloat16, torch.device("cpu"))
    assert plan.num_states == 8
    assert plan.draft_bytes > 0
