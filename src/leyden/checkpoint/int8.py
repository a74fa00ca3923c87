"""Quantization to 8 bits while a file is read, some megabytes of rows at a time: no float weight is ever whole."""

import torch

from leyden.checkpoint.rules import Binding, order_rows
from leyden.checkpoint.tensor_files import TensorFiles
from leyden.core.errors import UserError
from leyden.ops import quantize_rows


def read_in_8_bits(files: TensorFiles, binding: Binding, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The integers and scales of one of our parameters, whatever tensors of the file make it.

    A row is rounded by itself and lies in one tensor of the file, so that neither the order of rows nor how many
    tensors they come from changes a bit.

    Returns:
        [..., F, D] int8 and [..., F] float32.

    Raises:
        UserError: an element is infinite or no number; the message names the tensor and its file.
    """
    shape = binding.shape
    weight = torch.empty(shape, dtype=torch.int8, device=device)
    scale = torch.empty(shape[:-1], dtype=torch.float32, device=device)
    rows, scales, at = weight.view(-1, shape[-1]), scale.view(-1), 0
    for name in binding.theirs:
        for block in files.read_rows(name):
            here = slice(at, at := at + len(block))
            try:
                rows[here], scales[here] = quantize_rows(block.to(device))
            except ValueError as error:
                raise UserError(f"{name} in {files.stored[name].file}: {error}") from None
    if binding.rows is not None:
        order = binding.rows.argsort()
        weight, scale = order_rows(weight, order), order_rows(scale, order)
    return weight, scale
