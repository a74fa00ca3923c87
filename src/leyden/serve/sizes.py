"""How much memory an engine's sequences get."""

from dataclasses import dataclass

import torch

from leyden.core.errors import UserError
from leyden.model import PAGE, ModelConfig, Pools
from leyden.serve.config import EngineConfig

_GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """What an engine takes: slots, pages, and bytes of snapshots, of swapped sequences and for a draft model."""

    num_states: int
    num_pages: int
    cache_bytes: int
    swap_bytes: int
    draft_bytes: int


def plan_sizes(shape: ModelConfig, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> Sizes:
    """What ``config`` asks for, and its defaults by what is free.

    Args:
        shape: of the model, which has been loaded.
        config: of the engine.
        dtype: of keys and values.
        device: where they lie.

    Raises:
        UserError: not even one page fits.
    """
    free, host = _free_bytes(device), _free_bytes(torch.device("cpu"))
    state_bytes, page_bytes = Pools.bytes_of(shape, dtype)
    drafts = 0 if config.speculation == "none" else config.draft_tokens
    num_states = config.max_sequences * (1 + drafts)
    if num_states * state_bytes > free:
        raise UserError(
            f"{num_states} states of {state_bytes:,} bytes do not fit into the {free:,} bytes that are free; "
            "lower max_sequences."
        )
    num_pages = config.max_sequences * -(-shape.max_position_embeddings // PAGE)
    if page_bytes:
        kv_bytes = free // 2 if config.kv_gigabytes is None else int(config.kv_gigabytes * _GIGABYTE)
        num_pages = min(num_pages, kv_bytes // page_bytes)
    if num_pages < 1:
        raise UserError(
            f"one page of keys and values ({PAGE} tokens) takes {page_bytes:,} bytes, more than there are for them; "
            "raise kv_gigabytes, or take a smaller model."
        )
    return Sizes(
        num_states,
        num_pages,
        free // 10 if config.cache_gigabytes is None else int(config.cache_gigabytes * _GIGABYTE),
        host // 10 if config.swap_gigabytes is None else int(config.swap_gigabytes * _GIGABYTE),
        free // 10 if config.speculation == "draft" else 0,
    )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            kilobytes = dict(line.split(":", 1) for line in lines)["MemAvailable"]
        return int(kilobytes.split()[0]) * 1024
    except (OSError, KeyError):
        return 4 * _GIGABYTE
