"""The ops of the model: one folder each, with a slow reference and the bodies that are held to it."""

from leyden.ops.bidirectional_attention import bidirectional_attention
from leyden.ops.cross_entropy import IGNORE_INDEX, linear_cross_entropy, linear_token_nll
from leyden.ops.experts import LowRankExperts, swiglu_experts, swiglu_experts_fp8, swiglu_experts_low_rank
from leyden.ops.fp8_linear import fp8_linear
from leyden.ops.gated_linear_attention import (
    gated_linear_attention,
    gated_linear_attention_decode,
    gated_linear_attention_prefill,
    gated_linear_attention_step,
)
from leyden.ops.int8_linear import Int8Matrices, int8_linear, quantize_rows
from leyden.ops.lightning_attention import (
    lightning_attention,
    lightning_attention_decode,
    lightning_attention_prefill,
    lightning_attention_step,
    lightning_slopes,
)
from leyden.ops.paged_attention import paged_attention, paged_prompt_attention
from leyden.ops.paged_latent_attention import paged_latent_attention
from leyden.ops.ranged_attention import ranged_attention, ranged_attention_backward
from leyden.ops.rms_norm import gated_rms_norm, residual_rms_norm, rms_norm
from leyden.ops.rotary import apply_rotary, rotary_angles, rotary_frequencies, yarn_frequencies
from leyden.ops.routing import Groups, Routing, drop_over_capacity, expert_capacity, route, route_in_groups
from leyden.ops.sampling import Filters, can_sample, filter_table, prepare_sample, sample
from leyden.ops.silu_split import silu_split
from leyden.ops.softmax_attention import softmax_attention

__all__ = [
    "IGNORE_INDEX",
    "Filters",
    "Groups",
    "Int8Matrices",
    "LowRankExperts",
    "Routing",
    "apply_rotary",
    "bidirectional_attention",
    "can_sample",
    "drop_over_capacity",
    "expert_capacity",
    "filter_table",
    "fp8_linear",
    "gated_linear_attention",
    "gated_linear_attention_decode",
    "gated_linear_attention_prefill",
    "gated_linear_attention_step",
    "gated_rms_norm",
    "int8_linear",
    "lightning_attention",
    "lightning_attention_decode",
    "lightning_attention_prefill",
    "lightning_attention_step",
    "lightning_slopes",
    "linear_cross_entropy",
    "linear_token_nll",
    "paged_attention",
    "paged_latent_attention",
    "paged_prompt_attention",
    "prepare_sample",
    "quantize_rows",
    "ranged_attention",
    "ranged_attention_backward",
    "residual_rms_norm",
    "rms_norm",
    "rotary_angles",
    "rotary_frequencies",
    "route",
    "route_in_groups",
    "sample",
    "silu_split",
    "softmax_attention",
    "swiglu_experts",
    "swiglu_experts_fp8",
    "swiglu_experts_low_rank",
    "yarn_frequencies",
]
