"""How much memory the states, keys and values, snapshots and swapped sequences of an engine get."""

from dataclasses import dataclass

import torch

from leyden.core.device import free_bytes
from leyden.core.errors import UserError
from leyden.model import PAGE, ModelConfig, Pools
from leyden.serve.config import EngineConfig

_GIGABYTE = 1 << 30

_UNKNOWN_BYTES = 4 * _GIGABYTE
"""Taken to be free where the system does not say."""


@dataclass(frozen=True)
class MemoryPlan:
    """The sizes of :class:`leyden.model.Pools` and of :class:`leyden.serve.memory.EngineMemory`.

    Attributes:
        num_states: slots: one a sequence, and where guesses are verified one for each guess.
        num_pages: of keys and values.
        cache_bytes: for snapshots.
        swap_bytes: for sequences moved to the host.
        draft_bytes: for what a smaller model that guesses remembers; 0 without one.
    """

    num_states: int
    num_pages: int
    cache_bytes: int
    swap_bytes: int
    draft_bytes: int


def plan_memory(config: EngineConfig, model: ModelConfig, dtype: torch.dtype, device: torch.device) -> MemoryPlan:
    """:func:`divide_memory` of what is free on ``device``, and for a GPU on its host, as long as nobody takes it."""
    host = free_bytes(torch.device("cpu")) or _UNKNOWN_BYTES
    if device.type == "cpu":
        return divide_memory(config, model, dtype, device_bytes=host)
    return divide_memory(config, model, dtype, device_bytes=free_bytes(device) or _UNKNOWN_BYTES, host_bytes=host)


def check_free(sizes: MemoryPlan, model: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Look whether memory of these sizes can be had, as far as the system says what is free.

    Args:
        sizes: of an engine.
        model, dtype, device: as of :func:`plan_memory`.

    Raises:
        UserError: there is not so much.
    """
    state_bytes, page_bytes = Pools.bytes_of(model, dtype)
    on_device = sizes.num_states * state_bytes + sizes.num_pages * page_bytes + sizes.draft_bytes
    on_cpu = device.type == "cpu"
    for needed, where, free in (
        (on_device + (sizes.cache_bytes if on_cpu else 0), "device", free_bytes(device)),
        (0 if on_cpu else sizes.cache_bytes, "host", free_bytes(torch.device("cpu"))),
    ):
        if free is not None and needed > free:
            raise UserError(
                f"the engine had {_megabytes(needed)} on the {where}, and {_megabytes(free)} are free now; free what "
                "was allocated since its release (gradients, activations), or make an engine with less "
                "kv_gigabytes and cache_gigabytes."
            )


def divide_memory(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    *,
    device_bytes: int,
    host_bytes: int | None = None,
) -> MemoryPlan:
    """Divide what is free.

    States come first, as ``max_sequences`` needs them. Keys and values get what the sequences need at the model's
    positions, or half of what the device has left where that is less; a smaller model that guesses gets a tenth of it,
    and snapshots and swapped sequences a tenth each of what the host has left. The rest is for the forward pass and for
    others.

    Args:
        config: of the engine; its figures are taken as they are, or refused.
        model: the shape; of a rank's part, with its heads.
        dtype: of keys and values.
        device_bytes: free on the device, with the weights loaded.
        host_bytes: free on the host; None where that is the device.

    Raises:
        UserError: it does not fit; with the figures.
    """
    state_bytes, page_bytes = Pools.bytes_of(model, dtype)
    guesses = 0 if config.speculation == "none" else config.draft_tokens
    num_states = config.max_sequences * (1 + guesses)
    states_bytes = num_states * state_bytes
    left = max(0, device_bytes - states_bytes)
    host_left = left if host_bytes is None else host_bytes
    cache_bytes = _asked(config.cache_gigabytes, host_left // 10)
    swap_bytes = _asked(config.swap_gigabytes, host_left // 10)
    on_host = {
        "snapshots of states (cache_gigabytes)": cache_bytes,
        "sequences that make room (swap_gigabytes)": swap_bytes,
    }
    wanted = config.max_sequences * -(-model.max_position_embeddings // PAGE)
    draft_bytes = left // 10 if config.speculation == "draft" else 0
    kv_bytes = _asked(config.kv_gigabytes, left // 2)
    num_pages = min(wanted, kv_bytes // page_bytes) if page_bytes else wanted
    on_device = {
        f"{num_states} states for max_sequences = {config.max_sequences}": states_bytes,
        f"{max(1, num_pages)} pages of {PAGE} keys and values (kv_gigabytes)": max(1, num_pages) * page_bytes,
        "the smaller model's memory (speculation)": draft_bytes,
    }
    if host_bytes is None:
        _check({**on_device, **on_host}, device_bytes, "this machine")
    else:
        _check(on_device, device_bytes, "the device")
        _check(on_host, host_bytes, "the host")
    if num_pages < 1:
        raise UserError(
            f"one page of keys and values ({PAGE} tokens) takes {_megabytes(page_bytes)}, and they were given "
            f"{_megabytes(kv_bytes)}; raise kv_gigabytes, or lower max_sequences."
        )
    return MemoryPlan(num_states, num_pages, cache_bytes, swap_bytes, draft_bytes)


def _asked(gigabytes: float | None, otherwise: int) -> int:
    return otherwise if gigabytes is None else int(gigabytes * _GIGABYTE)


def _check(parts: dict[str, int], free: int, where: str) -> None:
    if sum(parts.values()) > free:
        listed = ", ".join(f"{_megabytes(size)} for {name}" for name, size in parts.items() if size)
        raise UserError(
            f"the engine needs {_megabytes(sum(parts.values()))} beside the weights, and {where} has "
            f"{_megabytes(free)} free: {listed}. Lower the largest of these."
        )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MB"
