"""A whole decoding step in one native call: one token, one sequence, on a CPU.

The body is ``single.cpp``, compiled at first use; its twin is the forward pass of ``leyden.model`` itself. The
structures here mirror those of the C++ source field by field; they hold addresses, so whoever fills them keeps the
tensors.
"""

import ctypes

import torch

from leyden.ops.native import UnavailableError, library

__all__ = ["LANES", "LayerAddresses", "ModelAddresses", "UnavailableError", "library", "single_step"]

LANES = 16
"""Every width that a vector runs along is a multiple of this."""

_ADDRESS = ctypes.c_void_p


class LayerAddresses(ctypes.Structure):
    """One layer; ``single.cpp`` says the shapes."""

    _fields_ = (
        ("lightning", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("attention_alpha", "attention_beta", "mlp_alpha", "mlp_beta")),
        *((name, _ADDRESS) for name in ("input_norm", "post_norm", "first", "second", "third", "out")),
        *((name, _ADDRESS) for name in ("head_norm", "slopes", "state", "keys", "values")),
        ("capacity", ctypes.c_int64),
        *((name, _ADDRESS) for name in ("router", "gate", "up", "down")),
        ("up_stride", ctypes.c_int64),
        ("down_stride", ctypes.c_int64),
    )


class ModelAddresses(ctypes.Structure):
    """The whole model; ``single.cpp`` says the shapes."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("bfloat16", "hidden", "heads", "kv_heads", "head_dim", "rotary_dim")),
        *((name, ctypes.c_int32) for name in ("intermediate", "experts", "top_k", "vocab", "layers", "postnorm")),
        ("eps", ctypes.c_float),
        ("head_eps", ctypes.c_float),
        ("theta", ctypes.c_double),
        *((name, _ADDRESS) for name in ("embedding", "final_norm", "head")),
        ("layer", ctypes.POINTER(LayerAddresses)),
    )


def single_step(model: ModelAddresses, token: int, position: int) -> torch.Tensor:
    """Read one token: the logits [V] of the next, in float32; states change in place, keys and values are appended.

    Args:
        model: with room for ``position`` in the keys and values of every softmax layer.
        token: its id.
        position: how many tokens were read before it.

    Raises:
        UnavailableError: the native step cannot be had here.
    """
    logits = torch.empty(model.vocab, dtype=torch.float32)
    library().leyden_decode_single(
        ctypes.byref(model),
        ctypes.c_int64(token),
        ctypes.c_int64(position),
        ctypes.c_int64(torch.get_num_threads()),
        ctypes.c_void_p(logits.data_ptr()),
    )
    return logits
