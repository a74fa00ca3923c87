"""What ``leyden bench cpu`` measures, and how often."""

from dataclasses import dataclass

from leyden.bench.work import AttentionShape
from leyden.model import ModelConfig, preset


@dataclass(frozen=True)
class CpuPlan:
    """The work of one run.

    Attributes:
        model: the shape; RoPE turns whole heads, since transformers cannot turn half.
        train: (batch, length) of the training steps; memory is measured at the first.
        prefill: lengths, in bfloat16.
        decode: (tokens of prompt, tokens generated).
        attention: the lightning op against softmax attention.
        flat: lengths at which the op's cost per token is taken.
        repeats: of each side; the work that takes seconds gets ``long_repeats``.
        threads: of each side.
        dtype: that models compute in; float32 on processors without arithmetic for bfloat16, where that is many times
            slower on both sides.
    """

    model: ModelConfig
    train: tuple[tuple[int, int], ...]
    prefill: tuple[int, ...]
    decode: tuple[int, int]
    attention: AttentionShape
    flat: tuple[int, ...]
    repeats: int
    long_repeats: int
    threads: int = 2
    dtype: str = "bfloat16"


FULL = CpuPlan(
    model=preset("tiny", num_key_value_heads=1, rotary_dim=64),
    train=((4, 1024), (1, 4096)),
    prefill=(4096, 32_768),
    decode=(512, 64),
    attention=AttentionShape(16_384, 8, 64),
    flat=(4096, 16_384, 65_536, 131_072),
    repeats=7,
    long_repeats=3,
)
QUICK = CpuPlan(
    model=preset(
        "tiny",
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=2,
        layer_types=("linear_attention", "full_attention"),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        rotary_dim=32,
        intermediate_size=64,
        num_local_experts=4,
    ),
    train=((2, 64), (1, 128)),
    prefill=(128, 256),
    decode=(32, 8),
    attention=AttentionShape(512, 2, 32),
    flat=(512, 1024),
    repeats=1,
    long_repeats=1,
)
