"""A whole decoding step in one native call: the next tokens of many sequences, on a CPU.

The body is ``decode.cpp``, compiled at first use; its twin is the forward pass of ``leyden.model`` itself. The
structures here mirror those of the C++ source field by field; they hold addresses, so whoever fills them keeps the
tensors.
"""

import ctypes
from array import array
from dataclasses import dataclass, field

import torch

from leyden.ops.native import LANES, UnavailableError, library, raise_fault

__all__ = [
    "KINDS",
    "LANES",
    "MIXERS",
    "DecodeBatch",
    "LayerAddresses",
    "MatrixAddress",
    "ModelAddresses",
    "UnavailableError",
    "decode_step",
    "library",
]

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""What the weights of a matrix can be; those of int8 have a float32 scale for each row."""

MIXERS = {"lightning": 1, "softmax": 2}
"""The mixers that the step has a body for, by their number in ``decode.cpp``; it refuses any other."""

_ADDRESS = ctypes.c_void_p


class MatrixAddress(ctypes.Structure):
    """One matrix [out, in], row-major."""

    _fields_ = (("weight", _ADDRESS), ("scale", _ADDRESS), ("kind", ctypes.c_int64))


class LayerAddresses(ctypes.Structure):
    """One layer; ``decode.cpp`` says the shapes."""

    _fields_ = (
        ("mixer", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("attention_alpha", "attention_beta", "mlp_alpha", "mlp_beta")),
        *((name, _ADDRESS) for name in ("input_norm", "post_norm")),
        *((name, MatrixAddress) for name in ("first", "second", "third", "out")),
        *((name, _ADDRESS) for name in ("head_norm", "slopes", "states", "keys", "values", "router")),
        *((name, MatrixAddress) for name in ("gate", "up", "down", "shared_gate", "shared_up", "shared_down")),
        ("shared_coefficient", _ADDRESS),
    )


class ModelAddresses(ctypes.Structure):
    """The whole model; ``decode.cpp`` says the shapes."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("bfloat16", "hidden", "heads", "kv_heads", "head_dim", "rotary_dim")),
        *((name, ctypes.c_int32) for name in ("intermediate", "experts", "top_k", "shared", "vocab", "layers")),
        ("postnorm", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("head_eps", ctypes.c_float),
        ("expert_rows", ctypes.c_int32),
        ("frequencies", _ADDRESS),
        ("embedding", MatrixAddress),
        ("final_norm", _ADDRESS),
        ("head", MatrixAddress),
        ("layer", ctypes.POINTER(LayerAddresses)),
        ("num_slots", ctypes.c_int64),
        ("num_pages", ctypes.c_int64),
    )


class _BatchAddresses(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_rows", "num_sequences", "num_wanted")),
        *((name, _ADDRESS) for name in ("rows", "bounds", "wanted", "pages")),
        ("num_pages", ctypes.c_int64),
    )


@dataclass
class DecodeBatch:
    """The tokens of one step, sequence by sequence.

    Attributes:
        rows: five numbers a token: its id, its position in the sequence, the slots of the state before it and behind
            it, and where the sequence's pages begin in ``pages``.
        bounds: of the sequences among the tokens, from 0.
        wanted: the tokens whose logits are asked for.
        pages: of all sequences.
    """

    rows: list[int] = field(default_factory=list)
    bounds: list[int] = field(default_factory=lambda: [0])
    wanted: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)


def decode_step(model: ModelAddresses, batch: DecodeBatch) -> torch.Tensor:
    """Read the tokens of ``batch``: the logits [R, V] of those wanted, float32; states and pages change in place.

    A token's logits are the same bits whatever else is in the batch, and for every number of threads.

    Args:
        model: with its pools.
        batch: whose slots and pages are of these pools, and whose ids are of the vocabulary.

    Raises:
        ValueError: an id, slot, page, position or bound that is outside; nothing was read or written.
        MemoryError: a thread got no memory to work in; the states behind these tokens, and their keys and values, are
            undefined, and the next call works as if this one had not been.
        UnavailableError: the native step cannot be had here.
    """
    # Rows that lie powers of two apart push each other out of the caches.
    stride = model.vocab + LANES
    logits = torch.empty_strided((len(batch.wanted), model.vocab), (stride, 1), dtype=torch.float32, device="cpu")
    sizes = (len(batch.rows) // 5, len(batch.bounds) - 1, len(batch.wanted))
    if min(model.num_slots, model.num_pages, sizes[1]) < 0:
        raise ValueError(f"decode_step: pools and bounds of sequences expected; given {sizes[1]} sequences.")
    lists = (array("q", batch.rows), array("q", batch.bounds), array("q", batch.wanted), array("i", batch.pages))
    addresses = _BatchAddresses(*sizes, *(numbers.buffer_info()[0] for numbers in lists), len(batch.pages))
    fault = library().leyden_decode(
        ctypes.byref(model),
        ctypes.byref(addresses),
        *(ctypes.c_int64(ctypes.sizeof(part)) for part in (ModelAddresses, LayerAddresses, _BatchAddresses)),
        ctypes.c_void_p(logits.data_ptr()),
        ctypes.c_int64(stride),
        ctypes.c_int64(torch.get_num_threads()),
    )
    raise_fault("leyden_decode", fault)
    return logits
