"""``leyden info --chip``: the roofline of a model on a chip, said in words."""

from collections.abc import Sequence

import torch

from leyden.core.chips import Chip
from leyden.core.quantities import count_text
from leyden.core.roofline import Cost, Speed
from leyden.model import ModelConfig, count_model
from leyden.model.operations import Operation, decode_operations, forward_operations

_BATCHES = (1, 8, 32, 128, 512)
_LARGEST_BATCH = 1 << 24


def roofline_text(config: ModelConfig, chip: Chip, length: int) -> str:
    """Each op of a forward pass over ``length`` tokens, then decoding by the number of sequences; in bfloat16.

    Args:
        config: the shape.
        chip: with its published peaks.
        length: tokens of the sequence that is read, and of each that is decoded.
    """
    speed = chip.speed
    lines = [
        f"{chip.title}: {chip.flops_per_second / 1e12:g} TFLOP/s in bfloat16, {chip.bytes_per_second / 1e12:g} TB/s, "
        f"{chip.memory_bytes / 1e9:g} GB ({chip.source}); the ridge is at {speed.ridge:.3g} FLOPs a byte",
        *_room(config, chip),
        "",
        f"A forward pass over {length:,} tokens with the logits of all:",
        *_table(forward_operations(config, length), speed),
        "",
        f"A step of decoding, by sequences of {length:,} tokens each:",
        f"{'sequences':>9}  {'FLOPs a byte':>12}  {'bound by':>8}  {'least time':>10}  {'tokens/s':>9}",
    ]
    for sequences in _BATCHES:
        operations = decode_operations(config, length, sequences)
        cost, seconds = total(operations), least_seconds(operations, speed)
        bound = speed.floor(cost)[1]
        rate = f"{sequences / seconds:,.0f}"
        lines.append(f"{sequences:>9}  {cost.intensity:>12.3g}  {bound:>8}  {_time(seconds):>10}  {rate:>9}")
    return "\n".join([*lines, _ridge_text(config, length, speed)])


def total(operations: Sequence[Operation]) -> Cost:
    """Of all layers."""
    return sum((operation.cost * operation.layers for operation in operations), Cost(0))


def least_seconds(operations: Sequence[Operation], speed: Speed) -> float:
    """Of the ops one after the other, each at its own bound."""
    return sum(operation.layers * speed.floor(operation.cost)[0] for operation in operations)


def ridge_batch(config: ModelConfig, length: int, speed: Speed) -> int | None:
    """The fewest sequences at which decoding has the intensity of the ridge.

    The intensity rises with every sequence, since weights are read once for all, towards that of what each sequence
    reads for itself: its states, keys and values. None: it stays below the ridge, however many there are.
    """

    def reached(sequences: int) -> bool:
        return total(decode_operations(config, length, sequences)).intensity >= speed.ridge

    if not reached(_LARGEST_BATCH):
        return None
    low, high = 0, _LARGEST_BATCH  # of these, high has reached it
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _table(operations: Sequence[Operation], speed: Speed) -> list[str]:
    width = max(len(operation.name) for operation in operations)
    head = f"{'op':<{width}}  {'layers':>6}  {'FLOPs':>8}  {'bytes':>9}  {'FLOPs a byte':>12}  {'bound by':>8}"
    rows = [f"{head}  {'least time':>10}"]
    for operation in operations:
        cost = operation.cost * operation.layers
        seconds, bound = speed.floor(cost)
        rows.append(
            f"{operation.name:<{width}}  {operation.layers:>6}  {cost.flops:>8.3g}  {_size(cost.bytes):>9}  "
            f"{cost.intensity:>12.3g}  {bound:>8}  {_time(seconds):>10}"
        )
    cost, seconds = total(operations), least_seconds(operations, speed)
    rows.append(
        f"{'all, one by one':<{width}}  {'':>6}  {cost.flops:>8.3g}  {_size(cost.bytes):>9}  {cost.intensity:>12.3g}  "
        f"{'':>8}  {_time(seconds):>10}"
    )
    return rows


def _room(config: ModelConfig, chip: Chip) -> list[str]:
    """A line where one chip cannot hold the weights."""
    weights = count_model(config).weight_bytes(torch.bfloat16)
    if weights <= chip.memory_bytes:
        return []
    return [
        f"The weights, {_size(weights)}, are more than its memory: n chips that divide the model take an n-th of these "
        "times at best, and what they exchange comes on top (leyden info --gpus)."
    ]


def _ridge_text(config: ModelConfig, length: int, speed: Speed) -> str:
    batch = ridge_batch(config, length, speed)
    if batch is not None:
        return f"From {batch:,} sequences on, decoding is bound by FLOPs."
    limit = total(decode_operations(config, length, _LARGEST_BATCH)).intensity
    return (
        f"At any number of sequences, decoding is bound by bytes: each reads its own states, keys and values, and the "
        f"intensity stays below {limit:.3g} FLOPs a byte."
    )


def _size(num_bytes: float) -> str:
    return f"{count_text(num_bytes)}B" if num_bytes < 1e9 else f"{num_bytes / 1e9:.4g} GB"


def _time(seconds: float) -> str:
    for scale, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
