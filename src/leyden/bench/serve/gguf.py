"""A model as a GGUF file, so that llama.cpp computes with the same weights as ours.

Written after the format's specification (ggml, docs/gguf.md, version 3) and the names that llama.cpp's architecture
"minimax-01" asks for; without a vocabulary, since the benchmark speaks in token ids.
"""

import struct
from pathlib import Path

import torch

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.model import HybridLM, ModelConfig
from leyden.model.attention_options import options_said
from leyden.model.mixers import mixer_of, residual_factors
from leyden.model.mixers.lightning import LightningAttention
from leyden.model.mixers.softmax import SoftmaxAttention

_ARCHITECTURE = "minimax-01"
_ALIGNMENT = 32
_FLOAT32, _BFLOAT16 = 0, 30  # ggml_type
_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.output_gate": "attn_gate",
    "self_attn.norm": "attn_norm_2",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate": "ffn_gate_inp",
}


def write_gguf(model: HybridLM, path: Path) -> None:
    """Write ``model`` with its matrices in their own dtype, its norms and routers in float32.

    Raises:
        UserError: the architecture cannot express the model's shape.
    """
    _check(model.config)
    tensors = _tensors(model)
    keys = _keys(model.config)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    header += b"".join(_string(key) + value for key, value in keys.items())
    offset = 0
    for name, tensor in tensors.items():
        kind = _BFLOAT16 if tensor.dtype == torch.bfloat16 else _FLOAT32
        dims = tensor.shape[::-1]  # GGUF counts from the dimension that lies together
        header += _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        offset += tensor.nbytes + -tensor.nbytes % _ALIGNMENT
    with atomic_file(path) as part, part.open("wb") as file:
        file.write(header + b"\0" * (-len(header) % _ALIGNMENT))
        for tensor in tensors.values():
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
            file.write(b"\0" * (-tensor.nbytes % _ALIGNMENT))


_KINDS = {LightningAttention, SoftmaxAttention}


def _check(config: ModelConfig) -> None:
    """What llama.cpp's graph has constants for."""
    alphas = {residual_factors(config, i) for i in range(config.num_hidden_layers)} | {config.residual("mlp")}
    reasons = {
        "its residual factors differ, or a beta is not 1": len(alphas) > 1 or {beta for _, beta in alphas} != {1.0},
        "its two epsilons differ": config.rms_norm_eps != config.lightning_norm_eps,
        "it is pre-norm": not config.postnorm,
        "a layer has no experts": "dense" in config.mlp_kinds(),
        "its router is of another kind": config.router != "softmax_topk",
        "it has a shared expert": bool(config.shared_intermediate_size),
        "it has options that MiniMax's model has not": bool(options_said(config)),
        "it has layers that are neither lightning nor softmax attention": not _KINDS.issuperset(
            map(mixer_of, config.layer_types)
        ),
    }
    wrong = [reason for reason, holds in reasons.items() if holds]
    if wrong:
        raise UserError(f"llama.cpp's {_ARCHITECTURE} cannot express this model: {'; '.join(wrong)}.")


def _keys(config: ModelConfig) -> dict[str, bytes]:
    """The model's shape under llama.cpp's names, each value with its type before it."""
    whole = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.rotary_dim,
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
    }
    real = {
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
        "residual_scale": config.residual("mlp")[0],
    }
    recurrent = [mixer_of(kind) is LightningAttention for kind in config.layer_types]
    keys = {key: struct.pack("<II", 4, value) for key, value in whole.items()}
    keys |= {key: struct.pack("<If", 6, value) for key, value in real.items()}
    keys["attention.recurrent_layers"] = struct.pack(f"<IIQ{len(recurrent)}?", 9, 7, len(recurrent), *recurrent)
    named = {f"{_ARCHITECTURE}.{key}": value for key, value in keys.items()}
    text = {"general.architecture": _ARCHITECTURE, "tokenizer.ggml.model": "no_vocab"}
    return {key: struct.pack("<I", 8) + _string(value) for key, value in text.items()} | named


def _tensors(model: HybridLM) -> dict[str, torch.Tensor]:
    """Name and values of each tensor; gate and up projection of the experts apart."""
    tensors = {}
    for name, value in model.state_dict().items():
        prefix, name = _layer(name)
        value = value.float() if value.ndim == 1 or name == "mlp.gate.weight" else value
        if name == "mlp.experts.gate_up_proj":
            gate, up = value.chunk(2, dim=1)
            tensors[f"{prefix}ffn_gate_exps.weight"] = gate
            tensors[f"{prefix}ffn_up_exps.weight"] = up
        elif name == "mlp.experts.down_proj":
            tensors[f"{prefix}ffn_down_exps.weight"] = value
        else:
            tensors[f"{prefix}{_NAMES[name.removesuffix('.weight')]}.weight"] = value
    return tensors


def _layer(name: str) -> tuple[str, str]:
    """``layers.3.mlp.gate.weight`` to ``blk.3.`` and the rest; other names have no prefix."""
    if not name.startswith("layers."):
        return "", name
    _, index, rest = name.split(".", 2)
    return f"blk.{index}.", rest


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
