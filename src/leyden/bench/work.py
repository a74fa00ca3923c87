"""The inputs both sides of a benchmark are given."""

from dataclasses import dataclass

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class AttentionShape:
    """One attention call: ``heads`` of ``head_dim`` over ``tokens``, in bfloat16."""

    tokens: int
    heads: int
    head_dim: int


def random_tokens(batch: int, length: int, vocab_size: int) -> torch.Tensor:
    """[batch, length] int64, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (batch, length), generator=generator)


def attention_inputs(shape: AttentionShape) -> list[torch.Tensor]:
    """q, k, v and the output's gradient: [1, T, H, D] bfloat16, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    size = (1, shape.tokens, shape.heads, shape.head_dim)
    return [torch.randn(size, generator=generator).to(torch.bfloat16) for _ in range(4)]
