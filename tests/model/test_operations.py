"""The ops one by one: together they are the count, and each is what arithmetic by hand gives."""

import pytest
import torch

from leyden.bench.gpu import floors
from leyden.core.roofline import Cost
from leyden.model import ModelConfig, count_model, preset
from leyden.model.operations import Operation, decode_operations, forward_operations

LATENT = preset(
    "tiny",
    layer_types=("latent_attention", "linear_attention") * 4,
    kv_lora_rank=48,
    rotary_dim=16,
    q_lora_rank=80,
    qk_nope_head_dim=40,
    qk_rope_head_dim=16,
    v_head_dim=24,
)
SHAPES = {
    "hybrid with experts": preset("tiny"),
    "dense": preset("70m"),
    "windows": preset("tiny", layer_types=("sliding_attention", "full_attention") * 4, sliding_window=9),
    "hgrn2": preset("tiny", layer_types=("hgrn2_attention",) * 7 + ("full_attention",), attn_output_gate=True),
    "latent": LATENT,
    "shared expert": preset("tiny", shared_intermediate_size=96, mlp_types=("dense",) + ("experts",) * 7),
}


def op(operations: list[Operation], name: str) -> Operation:
    (found,) = (operation for operation in operations if operation.name == name)
    return found


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(("length", "sequences"), [(1, 1), (37, 3), (4096, 1)])
def test_their_flops_are_those_of_the_count(config: ModelConfig, length: int, sequences: int) -> None:
    flops = sum(o.cost.flops * o.layers for o in forward_operations(config, length, sequences))
    assert flops == pytest.approx(sequences * length * count_model(config).forward_flops_per_token(length))


def test_a_decoded_token_computes_what_reading_it_adds() -> None:
    """Where keys are remembered as they are read: the last token of 37 alone is all 37 less the first 36."""
    config, counted = preset("tiny"), count_model(preset("tiny"))
    flops = sum(o.cost.flops * o.layers for o in decode_operations(config, 37, 1))
    assert flops == pytest.approx(37 * counted.forward_flops_per_token(37) - 36 * counted.forward_flops_per_token(36))


def test_lightning_attention_is_the_floor_of_its_kernels() -> None:
    """Another program counts the same op: the one that GPU kernels are held to."""
    config = preset("tiny")
    H, K, D = config.num_attention_heads, config.head_dim, config.hidden_size
    gate = 2 * H * K  # per token, in bfloat16; the kernel does not read it
    read = op(forward_operations(config, 100, 3), "lightning attention")
    floor = floors.lightning_forward(300, H, K, K, 3)
    assert read.layers == 7
    assert read.cost == Cost(floor.bytes + 300 * gate, floor.flops)
    decoded = op(decode_operations(config, 100, 5), "lightning attention")
    floor = floors.lightning_decode(5, H, K, K)
    assert decoded.cost == Cost(floor.bytes + 5 * gate, floor.flops)
    projections = op(decode_operations(config, 100, 5), "lightning projections").cost
    assert projections.flops == 2 * 5 * 5 * D * H * K  # q, k, v, gate, output
    assert projections.bytes == 2 * (5 * D * H * K + 5 * (5 * H * K + 2 * D))


def test_softmax_attention_reads_all_keys_for_one_token() -> None:
    config = preset("text-01")  # 64 heads of 128 dims, 8 of keys and values
    cost = op(decode_operations(config, 1000, 2), "softmax attention").cost
    assert cost.flops == 2 * 1000 * 4 * 64 * 128
    assert cost.bytes == 2 * (1000 * 2 * 8 * 128 * 2 + 2 * (2 * 64 * 128 + 2 * 8 * 128))


def test_a_window_bounds_what_is_read() -> None:
    config = preset("tiny", layer_types=("sliding_attention",) * 8, sliding_window=9)
    short, full, long = (op(decode_operations(config, n, 1), "sliding-window attention").cost for n in (8, 9, 9000))
    assert full == long
    one = 2 * config.num_key_value_heads * config.head_dim * 2
    assert full.bytes - short.bytes == one


def test_latent_attention_decodes_over_latents() -> None:
    """64 kept numbers a token, and for each head a score over 64 and a mean over 48 of them."""
    cost = op(decode_operations(LATENT, 1000, 1), "latent attention").cost
    H = LATENT.num_attention_heads
    assert cost.flops == 1000 * 2 * H * (64 + 48)
    assert cost.bytes == 1000 * 64 * 2 + 2 * H * (56 + 24) * 2


def test_sequences_meet_as_many_experts_as_chance_gives() -> None:
    """Of 4 experts, 1 a token: two tokens meet 1.75 of them, and ever more meet all."""
    config = preset("tiny", num_local_experts=4, num_experts_per_tok=1)
    D, F = config.hidden_size, config.intermediate_size

    def weights(sequences: int) -> float:
        cost = op(decode_operations(config, 10, sequences), "experts").cost
        return (cost.bytes - sequences * 2 * D * 2) / 2 / (3 * D * F)

    assert [weights(n) for n in (1, 2, 3, 1000)] == pytest.approx([1, 1.75, 2.3125, 4])
    assert op(decode_operations(config, 10, 3), "experts").cost.flops == 3 * 2 * 3 * D * F


def test_the_output_projection_writes_logits_in_decoding_alone() -> None:
    config = preset("tiny")
    D, V = config.hidden_size, config.vocab_size
    assert op(decode_operations(config, 10, 3, torch.float32), "output projection").cost == Cost(
        4 * (V * D + 3 * D + 3 * V), 2 * 3 * V * D
    )
    assert op(forward_operations(config, 10), "output projection").cost.bytes == 2 * (V * D + 10 * D)
