"""The model's weights, as an engine looks at them: what decodes with them, and whether they have changed."""

import itertools
from typing import Literal

from leyden.core.errors import UserError
from leyden.core.log import log_once
from leyden.model import HybridLM, NativeDecoder, Pools
from leyden.ops.decode import UnavailableError


def native_decoder(model: HybridLM, pools: Pools, decoder: Literal["auto", "native", "torch"]) -> NativeDecoder | None:
    """The compiled step of ``model`` as its weights are now; None where the modules are to read single tokens.

    Raises:
        UserError: ``decoder`` is ``"native"``, and there is none for this model or machine.
    """
    if decoder == "torch":
        return None
    try:
        return NativeDecoder(model, pools)
    except UnavailableError as reason:
        if decoder == "native":
            raise UserError(f"decoder='native' cannot run: {reason}; take 'auto' or 'torch'.") from None
        log_once(__name__, f"decoding in PyTorch, not natively: {reason}")
        return None


def versions(model: HybridLM) -> list[tuple[int, int]]:
    """What changes whenever a weight does: where each lies, and how often it was written to."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
