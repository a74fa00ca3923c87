"""A whole decoding step in one native call: the next tokens of many sequences, on a CPU.

The body is ``decode.cpp``, compiled at first use; its twin is the forward pass of ``leyden.model`` itself. The
structures here mirror those of the C++ source field by field; they hold addresses, so whoever fills them keeps the
tensors.
"""

import ctypes
from array import array
from collections.abc import Sequence

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

MIXERS = {"lightning": 1, "softmax": 2, "sliding window": 3, "cosFormer2": 4, "HGRN2": 5}
"""The mixers that the step has a body for, by their number in ``model.h``; it refuses any other."""

_ADDRESS = ctypes.c_void_p


class MatrixAddress(ctypes.Structure):
    """One matrix [out, in], row-major."""

    _fields_ = (("weight", _ADDRESS), ("scale", _ADDRESS), ("kind", ctypes.c_int64))


class LayerAddresses(ctypes.Structure):
    """One layer; ``model.h`` says the shapes."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("mixer", "window", "num_experts", "shared_width", "shared_added")),
        *((name, ctypes.c_float) for name in ("attention_alpha", "attention_beta", "mlp_alpha", "mlp_beta")),
        *((name, ctypes.c_float) for name in ("lower_bound", "above_bound")),
        *((name, _ADDRESS) for name in ("input_norm", "post_attention_norm")),
        *((name, MatrixAddress) for name in ("qkv_proj", "output_gate")),
        *((name, _ADDRESS) for name in ("q_norm", "k_norm", "output_norm", "slopes", "states")),
        *((name, MatrixAddress) for name in ("q_proj", "k_proj", "v_proj")),
        *((name, _ADDRESS) for name in ("keys", "values")),
        ("out_proj", MatrixAddress),
        *((name, _ADDRESS) for name in ("router", "expert_bias")),
        *((name, MatrixAddress) for name in ("gate_proj", "up_proj", "down_proj")),
        *((name, MatrixAddress) for name in ("shared_gate_proj", "shared_up_proj", "shared_down_proj")),
        ("shared_coefficient", _ADDRESS),
    )


class ModelAddresses(ctypes.Structure):
    """The whole model; ``model.h`` says the shapes."""

    _fields_ = (
        ("bfloat16", ctypes.c_int32),
        *((name, ctypes.c_int32) for name in ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "rotary_dim")),
        *((name, ctypes.c_int32) for name in ("lightning_silu", "lightning_rotary_dim")),
        ("lightning_scale", ctypes.c_float),
        ("norm_groups", ctypes.c_int32),
        ("embedding_scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("expert_width", "top_k", "most_experts", "widest_shared")),
        *((name, ctypes.c_int32) for name in ("vocab_size", "num_layers")),
        *((name, ctypes.c_int32) for name in ("num_groups", "chosen_groups", "group_best", "weights_normed")),
        ("weights_scale", ctypes.c_float),
        ("postnorm", ctypes.c_int32),
        ("norm_eps", ctypes.c_float),
        ("output_norm_eps", ctypes.c_float),
        ("rotary_scale", ctypes.c_float),
        ("expert_rows", ctypes.c_int32),
        ("inverse_frequencies", _ADDRESS),
        ("lightning_frequencies", _ADDRESS),
        ("turning_frequencies", _ADDRESS),
        ("embedding", MatrixAddress),
        ("final_norm", _ADDRESS),
        ("lm_head", MatrixAddress),
        ("layers", ctypes.POINTER(LayerAddresses)),
        ("num_slots", ctypes.c_int64),
        ("num_pages", ctypes.c_int64),
    )


class _BatchAddresses(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_tokens", "num_sequences", "num_wanted")),
        *((name, _ADDRESS) for name in ("tokens", "cu_seqlens", "wanted", "page_tables")),
        ("num_pages", ctypes.c_int64),
    )


class DecodeBatch:
    """The tokens of one step, sequence by sequence, where the native step reads them.

    Args:
        tokens: five numbers a token: its id, its position in the sequence, the slots of the state before it and behind
            it, and where the sequence's pages begin in ``page_tables``.
        cu_seqlens: where each sequence begins among the tokens, and where the last one ends.
        wanted: the tokens whose logits are asked for.
        page_tables: the pages of all sequences, one sequence behind another.

    Attributes:
        num_tokens, num_sequences, num_wanted: of the step.
        addresses: of all of them, as C++ takes them.
        logits: of the last step with this batch; the next one overwrites them.
    """

    def __init__(
        self,
        tokens: Sequence[int] = (),
        cu_seqlens: Sequence[int] = (0,),
        wanted: Sequence[int] = (),
        page_tables: Sequence[int] = (),
    ) -> None:
        self.num_tokens, self.num_sequences, self.num_wanted = len(tokens) // 5, len(cu_seqlens) - 1, len(wanted)
        self._tokens = array("q", tokens)
        self._kept = (self._tokens, array("q", cu_seqlens), array("q", wanted), array("i", page_tables))
        self.addresses = _BatchAddresses(
            self.num_tokens,
            self.num_sequences,
            self.num_wanted,
            *(numbers.buffer_info()[0] for numbers in self._kept),
            len(page_tables),
        )
        self.logits: torch.Tensor | None = None

    def advance(self, ids: Sequence[int]) -> None:
        """Make it the batch of the next step, in which each sequence reads the token behind its one token.

        Args:
            ids: of each sequence in turn; of no sequence more than one token was read before.

        Raises:
            ValueError: there are not as many ids as tokens.
        """
        tokens = self._tokens
        tokens[0::5] = array("q", ids)
        tokens[1::5] = array("q", [position + 1 for position in tokens[1::5]])
        tokens[2::5] = tokens[3::5]


def decode_step(model: ModelAddresses, batch: DecodeBatch) -> torch.Tensor:
    """Read the tokens of ``batch``: the logits [R, V] of those wanted, float32; states and pages change in place.

    A token's logits are the same bits whatever else is in the batch, and for every number of threads.

    Args:
        model: with its pools.
        batch: whose slots and pages are of these pools, and whose ids are of the vocabulary. It has its logits from now
            on, until it is read again.

    Raises:
        ValueError: an id, slot, page, position or bound that is outside; nothing was read or written.
        MemoryError: a thread got no memory to work in; the states behind these tokens, and their keys and values, are
            undefined, and the next call works as if this one had not been.
        UnavailableError: the native step cannot be had here.
    """
    # Rows of logits that lie powers of two apart push each other out of the caches.
    size, stride = (batch.num_wanted, model.vocab_size), model.vocab_size + LANES
    if min(model.num_slots, model.num_pages, batch.num_sequences) < 0:
        raise ValueError(f"decode_step: pools and bounds of sequences expected; given {batch.num_sequences} sequences.")
    logits = batch.logits
    if logits is None or logits.shape != size:
        logits = batch.logits = torch.empty_strided(size, (stride, 1), dtype=torch.float32, device="cpu")
    fault = library().leyden_decode(
        ctypes.byref(model),
        ctypes.byref(batch.addresses),
        *(ctypes.c_int64(ctypes.sizeof(part)) for part in (ModelAddresses, LayerAddresses, _BatchAddresses)),
        ctypes.c_void_p(logits.data_ptr()),
        ctypes.c_int64(stride),
        ctypes.c_int64(torch.get_num_threads()),
    )
    raise_fault("leyden_decode", fault)
    return logits
