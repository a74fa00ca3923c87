"""The decoders of a model: native or PyTorch, with the weights as they are at a step."""

from typing import Literal

import torch

from leyden.core.errors import UserError
from leyden.core.log import log_once
from leyden.model import HybridLM, NativeDecoder, Pools, Ranks
from leyden.ops.decode import UnavailableError
from leyden.serve.graphs import CudaRecorder, DecodeGraphs

DecoderName = Literal["auto", "native", "graph", "torch"]


def decoder_of(model: HybridLM, pools: Pools, decoder: DecoderName) -> NativeDecoder | DecodeGraphs | None:
    """What reads single tokens of ``model`` as its weights are now; None where the modules are to, op by op.

    Raises:
        UserError: ``decoder`` is ``"native"`` or ``"graph"``, and there is none for this model or machine.
    """
    if decoder == "torch":
        return None
    device = pools.device
    if decoder == "graph" or (decoder == "auto" and device.type == "cuda"):
        reason = _reason_against_graphs(model, device)
        if reason is None:
            return DecodeGraphs(model, pools, CudaRecorder(device))
        if decoder == "graph":
            raise UserError(f"decoder='graph' cannot run: {reason}; take 'auto' or 'torch'.")
    try:
        return NativeDecoder(model, pools)
    except UnavailableError as reason:
        if decoder == "native":
            raise UserError(f"decoder='native' cannot run: {reason}; take 'auto' or 'torch'.") from None
        log_once(__name__, f"decoding in PyTorch, op by op: {reason}")
        return None


def _reason_against_graphs(model: HybridLM, device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the model is on {device.type}, not on a GPU"
    if type(model.ranks) is not Ranks:
        return "several ranks compute the model together"
    if model.adapters is not None:
        return "which rows an adapter computes changes from step to step"
    return None
