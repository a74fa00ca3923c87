"""Lightning attention in blocks, in plain PyTorch."""

import torch

from leyden.ops.lightning_attention.reference import lightning_attention_reference

lightning_attention_portable = lightning_attention_reference  # replaced by the chunked body
