"""``leyden info --serve``: what serving a model on some GPUs takes, by arithmetic, before there is one."""

from collections.abc import Sequence
from math import prod

import torch

from leyden.checkpoint.stored_weights import empty_model
from leyden.core.config import override
from leyden.core.errors import UserError
from leyden.core.quantities import bytes_text
from leyden.model import PAGE, HybridLM, ModelConfig, Pools
from leyden.model.quantized import Int8
from leyden.parallel.mesh import coordinates
from leyden.parallel.plan import ParallelConfig, Plan
from leyden.parallel.serving import serving_plan
from leyden.parallel.weights import part_of
from leyden.recipes.info import read_shape
from leyden.serve.config import EngineConfig
from leyden.serve.memory.plan import divide_memory

_DTYPE = torch.bfloat16
_UNBOUNDED_HOST = 1 << 60


def serving_text(
    what: str, settings: Sequence[str], gpus: int, memory_bytes: float, *, int8: Int8, length: int, max_sequences: int
) -> str:
    """Weights, states, keys and values of each GPU, and how many tokens fit, as ``leyden serve`` would divide it.

    Args:
        what: a recipe, a model's directory, a hub id or a preset.
        settings: changes to the shape of a recipe or preset, and to ``parallel.tp``, ``ep`` and ``etp``.
        gpus: how many share the model.
        memory_bytes: of one.
        int8: which weights are in 8 bits.
        length: of a sequence, in tokens.
        max_sequences: of the engine.

    Raises:
        UserError: ``what`` is unknown, or the model cannot be divided so.
    """
    axes = [setting for setting in settings if setting.startswith("parallel.")]
    config = read_shape(what, [setting for setting in settings if setting not in axes])
    parallel = ParallelConfig.parse(override({"parallel": {}}, axes)["parallel"], "--set parallel")
    if int8 == "all" and gpus > 1:
        raise UserError("ranks hold the embedding and output projection as they are; take --int8 layers.")
    plan = serving_plan(parallel, gpus, config) if gpus > 1 else Plan()
    network = empty_model(config, _DTYPE, int8)
    weights = max(_weight_bytes(network, plan, rank) for rank in range(gpus))
    shape = config.model_copy(
        update={
            "num_attention_heads": config.num_attention_heads // plan.tp,
            "num_key_value_heads": max(1, config.num_key_value_heads // plan.tp),
        }
    )
    rows = [("plan", str(plan) if gpus > 1 else "one GPU"), ("weights a GPU", _weights_row(config, weights, int8))]
    rows += _memory_rows(shape, memory_bytes, weights, length, max_sequences)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _weight_bytes(network: HybridLM, plan: Plan, rank: int) -> int:
    """Of the part of the model that a rank holds."""
    at, total = coordinates(plan, rank), 0
    tensors = {id(tensor): (name, tensor) for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    for name, tensor in tensors.values():
        if name.endswith("scale"):
            continue  # counted with the rows that it scales
        local = part_of(name, tuple(tensor.shape), plan, at).local_shape
        if tensor.dtype == torch.int8:
            total += prod(local) + 4 * prod(local[:-1])  # and one float32 scale a row
        else:
            total += prod(local) * tensor.dtype.itemsize
    return total


def _weights_row(config: ModelConfig, weights: int, int8: Int8) -> str:
    kinds = {"none": "in bfloat16", "layers": "layers in 8 bits", "all": "all in 8 bits"}
    return f"{bytes_text(weights)} ({kinds[int8]}; norms{' and routers' * bool(config.num_local_experts)} in float32)"


def _memory_rows(
    shape: ModelConfig, memory_bytes: float, weights: int, length: int, max_sequences: int
) -> list[tuple[str, str]]:
    left = int(memory_bytes - weights)
    state, page = Pools.bytes_of(shape, _DTYPE)
    sequence = f"{bytes_text(state)} of state at any length, and {page // PAGE:,} bytes a token"
    rows = [("a sequence", f"{sequence}, on each GPU")]
    if left <= 0:
        return [*rows, ("does not fit", f"the weights take more than the {bytes_text(int(memory_bytes))} of a GPU")]
    rows.insert(0, ("left", f"{bytes_text(left)} of {bytes_text(int(memory_bytes))}, of which the libraries want some"))
    try:
        found = divide_memory(
            EngineConfig(max_sequences=max_sequences), shape, _DTYPE, device_bytes=left, host_bytes=_UNBOUNDED_HOST
        )
    except UserError as error:
        return [*rows, ("does not fit", str(error))]
    tokens = found.num_pages * PAGE
    together = min(max_sequences, found.num_pages // -(-length // PAGE))
    rows.append(
        (
            "fits",
            f"{max_sequences} sequences (--max-sequences) with {bytes_text(found.num_states * state)} of states, and "
            f"{tokens:,} tokens of theirs ({bytes_text(found.num_pages * page)} of keys and values)",
        )
    )
    rows.append((f"at {length:,} tokens", f"{together:,} sequences at once" if together else "not one sequence"))
    return rows
