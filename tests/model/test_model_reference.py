"""The whole model equals MiniMax-01 written out token by token in float64, from the published formulas."""

import math
from collections.abc import Callable

import pytest
import torch

from leyden.model import HybridLM, ModelConfig

Weights = dict[str, torch.Tensor]


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean() + eps).sqrt() * weight


def grouped_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, groups: int) -> torch.Tensor:
    return torch.cat([rms_norm(*part, eps) for part in zip(x.chunk(groups), weight.chunk(groups), strict=True)])


def normed_heads(x: torch.Tensor, weights: Weights, name: str, eps: float) -> torch.Tensor:
    """Heads [H, D], each normed by itself where there is a norm of that name."""
    weight = weights.get(f"{name}.weight")
    return x if weight is None else torch.stack([rms_norm(head, weight, eps) for head in x])


def slope(head: int, H: int, layer: int, L: int, factor: str = "layer") -> float:
    """ALiBi's slope, interpolated between powers of two, times the layer's factor."""
    P = 2 ** int(math.log2(H))
    alibi = 2 ** (-8 * (head + 1) / P) if head < P else 2 ** (-8 * (2 * (head - P) + 1) / (2 * P))
    factors = {"layer": 1 - layer / (L - 1) + 1e-5, "previous_layer": 1 - (layer - 1) / (L - 1) + 1e-5, "none": 1.0}
    return alibi * factors[factor]


class Lightning:
    """``S_t = lambda S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t``, a head at a time; q, k perhaps normed and turned."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        self.w, self.H, self.K, self.c = weights, config.num_attention_heads, config.head_dim, config
        self.position, self.activation = 0, silu if config.lightning_activation == "silu" else lambda x: x
        self.scale = {"none": 1, "1/sqrt(d)": 1 / math.sqrt(self.K), "1/d": 1 / self.K}[config.lightning_scale]
        L, factor = config.num_hidden_layers, config.lightning_slope_factor
        slopes = torch.tensor([slope(h, self.H, layer, L, factor) for h in range(self.H)])
        self.decay = torch.exp(-slopes.float().double())  # slopes are float32 in every model
        self.S = torch.zeros(self.H, self.K, self.K, dtype=torch.float64)

    def __call__(self, n: torch.Tensor) -> torch.Tensor:
        qkv = self.activation(self.w["qkv_proj.weight"] @ n).view(self.H, 3, self.K)
        rates = [frequency(self.c, i, self.c.lightning_rotary_dim) for i in range(self.c.lightning_rotary_dim // 2)]
        qs, ks = (
            normed_heads(qkv[:, i], self.w, name, self.c.rms_norm_eps) for i, name in enumerate(("q_norm", "k_norm"))
        )
        qs, ks = turned(qs, self.position, rates) * self.scale, turned(ks, self.position, rates)
        self.position += 1
        heads = []
        for h, (q, k, v) in enumerate(zip(qs, ks, qkv[:, 2], strict=True)):
            self.S[h] = self.decay[h] * self.S[h] + torch.outer(k, v)
            heads.append(self.S[h].T @ q)
        o = grouped_norm(torch.cat(heads), self.w["norm.weight"], 1e-6, self.c.lightning_norm_groups)
        return self.w["out_proj.weight"] @ (o / (1 + torch.exp(-self.w["output_gate.weight"] @ n)))


def frequency(config: ModelConfig, pair: int, dims: int) -> float:
    """Radians a token: RoPE's, position interpolation's, or YaRN's of section 3.2 (its ramp over whole pairs)."""
    R, base, scaling = dims, config.rope_theta, config.rope_scaling
    plain = base ** (-2 * pair / R)
    if scaling.rope_type != "yarn":
        return plain / (scaling.factor or 1)
    turns = {"fast": scaling.beta_fast or 32, "slow": scaling.beta_slow or 1}
    length = scaling.original_max_position_embeddings
    at = {name: R * math.log(length / (2 * math.pi * n)) / (2 * math.log(base)) for name, n in turns.items()}
    low, high = max(math.floor(at["fast"]), 0), min(math.ceil(at["slow"]), R - 1)
    ramp = min(max((pair - low) / (high - low or 0.001), 0), 1)
    return ramp * plain / scaling.factor + (1 - ramp) * plain


def turned(x: torch.Tensor, position: int, frequencies: list[float]) -> torch.Tensor:
    """The first dims of heads x [H, D], half-split, a pair for each frequency."""
    x, half = x.clone(), len(frequencies)
    for i, rate in enumerate(frequencies):
        angle = position * rate
        # cosines and sines are rounded to float32 in every model
        cos, sin = (torch.tensor(f(angle)).float().double() for f in (math.cos, math.sin))
        a, b = x[:, i].clone(), x[:, i + half].clone()
        x[:, i], x[:, i + half] = a * cos - b * sin, b * cos + a * sin
    return x


class Cosformer2:
    """``S_t = S_{t-1} + (R_t k_t) v_t^T``, ``o_t = S_t^T R_t q_t``; angles of base ``10000^(1/H)`` over all dims."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        self.w, self.H, self.K, self.position = weights, config.num_attention_heads, config.head_dim, 0
        self.S = torch.zeros(self.H, self.K, self.K, dtype=torch.float64)

    def __call__(self, n: torch.Tensor) -> torch.Tensor:
        qkv = (self.w["qkv_proj.weight"] @ n).view(self.H, 3, self.K)
        rates = [10_000 ** (-2 * i / self.K / self.H) for i in range(self.K // 2)]
        q, k = (turned(silu(qkv[:, i]), self.position, rates) for i in range(2))
        self.position += 1
        self.S += torch.einsum("hk,hv->hkv", k, qkv[:, 2])
        o = rms_norm(torch.einsum("hkv,hk->hv", self.S, q).flatten(), self.w["norm.weight"], 1e-6)
        return self.w["out_proj.weight"] @ (o / (1 + torch.exp(-self.w["output_gate.weight"] @ n)))


class Hgrn2:
    """``S_t = Diag(f_t) S_{t-1} + (1 - f_t) v_t^T``, ``f = b + (1 - b) sigmoid(.)``, ``b`` the layer's share of all."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        self.w, self.H, self.K = weights, config.num_attention_heads, config.head_dim
        self.bound, self.groups = layer / config.num_hidden_layers, config.lightning_norm_groups
        self.S = torch.zeros(self.H, self.K, self.K, dtype=torch.float64)

    def __call__(self, n: torch.Tensor) -> torch.Tensor:
        heads = []
        for h, (q, logits, v) in enumerate((self.w["qkv_proj.weight"] @ n).view(self.H, 3, self.K)):
            f = self.bound + (1 - self.bound) / (1 + torch.exp(-logits))
            self.S[h] = torch.diag(f) @ self.S[h] + torch.outer(1 - f, v)
            heads.append(self.S[h].T @ silu(q))
        return self.w["out_proj.weight"] @ grouped_norm(torch.cat(heads), self.w["norm.weight"], 1e-6, self.groups)


def capped(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Gemma 2, section 2."""
    return x if cap is None else cap * torch.tanh(x / cap)


class Softmax:
    """Grouped queries; RoPE on the first ``rotary_dim`` dims, half-split, perhaps stretched; the head is scaled."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        self.w, self.c, self.keys, self.values = weights, config, [], []
        self.window = config.sliding_window if config.layer_types[layer] == "sliding_attention" else None

    def turn(self, x: torch.Tensor, position: int) -> torch.Tensor:
        x = turned(x, position, [frequency(self.c, i, self.c.rotary_dim) for i in range(self.c.rotary_dim // 2)])
        scaling = self.c.rope_scaling
        return x * (0.1 * math.log(scaling.factor) + 1) if scaling.rope_type == "yarn" else x

    def __call__(self, n: torch.Tensor) -> torch.Tensor:
        D, H, G = self.c.head_dim, self.c.num_attention_heads, self.c.num_key_value_heads
        q, k, v = (self.w[f"{name}_proj.weight"] @ n for name in "qkv")
        position, eps = len(self.keys), self.c.rms_norm_eps
        q, k = normed_heads(q.view(H, D), self.w, "q_norm", eps), normed_heads(k.view(G, D), self.w, "k_norm", eps)
        self.keys.append(self.turn(k, position))
        self.values.append(v.view(G, D))
        q, keys, values = self.turn(q, position), torch.stack(self.keys), torch.stack(self.values)
        if self.window:
            keys, values = keys[-self.window :], values[-self.window :]
        heads = []
        for h in range(H):
            shared = h * G // H
            scores = capped(keys[:, shared] @ q[h] / math.sqrt(D), self.c.attn_logit_softcapping)
            heads.append(torch.softmax(scores, 0) @ values[:, shared])
        gate = torch.sigmoid(self.w["output_gate.weight"] @ n) if self.c.attn_output_gate else 1
        return self.w["o_proj.weight"] @ (torch.cat(heads) * gate)


class Latent:
    """DeepSeek's equations: every head's keys and values of one latent, and a turning key that all heads share."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int) -> None:
        self.w, self.c, self.keys, self.values = weights, config, [], []

    def turn(self, x: torch.Tensor, position: int) -> torch.Tensor:
        """Dims [H, R], in pairs (2i, 2i + 1) where they are interleaved; what turns has the factor of YaRN."""
        if self.c.rope_interleave:
            x = torch.cat([x[:, 0::2], x[:, 1::2]], dim=1)
        scaling, stretch = self.c.rope_scaling, 1.0
        if scaling.rope_type == "yarn":
            up, down = (0.1 * (m or 1) * math.log(scaling.factor) + 1 for m in (scaling.mscale, scaling.mscale_all_dim))
            stretch = up / down if scaling.mscale else up
        return (
            turned(
                x,
                position,
                [frequency(self.c, i, self.c.qk_rope_head_dim) for i in range(self.c.qk_rope_head_dim // 2)],
            )
            * stretch
        )

    def __call__(self, n: torch.Tensor) -> torch.Tensor:
        c, w, position = self.c, self.w, len(self.keys)
        H, N, R, V = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        if c.q_lora_rank is None:
            q = w["q_proj.weight"] @ n
        else:
            q = w["q_b_proj.weight"] @ rms_norm(w["q_a_proj.weight"] @ n, w["q_a_layernorm.weight"], 1e-6)
        q, down = q.view(H, N + R), w["kv_a_proj_with_mqa.weight"] @ n
        latent = rms_norm(down[: c.kv_lora_rank], w["kv_a_layernorm.weight"], 1e-6)
        made = (w["kv_b_proj.weight"] @ latent).view(H, N + V)
        shared = self.turn(down[None, c.kv_lora_rank :], position).expand(H, R)
        self.keys.append(torch.cat([made[:, :N], shared], dim=1))
        self.values.append(made[:, N:])
        q = torch.cat([q[:, :N], self.turn(q[:, N:], position)], dim=1)
        scale, scaling = 1 / math.sqrt(N + R), c.rope_scaling
        if scaling.mscale_all_dim:
            scale *= (0.1 * scaling.mscale_all_dim * math.log(scaling.factor) + 1) ** 2
        keys, values = torch.stack(self.keys), torch.stack(self.values)
        heads = [torch.softmax(keys[:, h] @ q[h] * scale, 0) @ values[:, h] for h in range(H)]
        return w["o_proj.weight"] @ torch.cat(heads)


def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return down @ (silu(gate @ x) * (up @ x))


def by_softmax(x: torch.Tensor, config: ModelConfig, w: Weights) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and experts of a token."""
    chosen = torch.softmax(w["gate.weight"] @ x, 0).topk(config.num_experts_per_tok)
    return chosen.values / chosen.values.sum(), chosen.indices


def by_sigmoid(x: torch.Tensor, config: ModelConfig, w: Weights) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by DeepSeek-V3's rule."""
    p = 1 / (1 + torch.exp(-(w["gate.weight"] @ x)))
    biased = (p + w["gate.expert_bias"]).view(config.n_group, -1)
    of_group = biased.sort(1).values[:, -2:].sum(1) if config.group_score == "top2_sum" else biased.max(1).values
    for group in of_group.sort().indices[: config.n_group - config.topk_group]:
        biased[group] = -torch.inf
    chosen = biased.flatten().sort(descending=True).indices[: config.num_experts_per_tok]
    weights = p[chosen] / (p[chosen].sum() + 1e-20) if config.norm_topk_prob else p[chosen]
    return weights * config.routed_scaling_factor, chosen


def feed_forward(x: torch.Tensor, config: ModelConfig, w: Weights) -> torch.Tensor:
    if "gate_proj.weight" in w:
        return swiglu(x, *(w[f"{name}_proj.weight"] for name in ("gate", "up", "down")))
    out = torch.zeros_like(x)
    for p, e in zip(*(by_sigmoid if config.router == "sigmoid_groups" else by_softmax)(x, config, w), strict=True):
        gate, up = w["experts.gate_up_proj"][e].chunk(2)
        out += p * swiglu(x, gate, up, w["experts.down_proj"][e])
    if config.shared_intermediate_size:
        shared = swiglu(x, *(w[f"shared.mlp.{name}_proj.weight"] for name in ("gate", "up", "down")))
        if not config.shared_expert_gate:
            return out + shared
        c = torch.sigmoid(w["shared.coefficient.weight"][0] @ x)
        out = out * (1 - c) + shared * c
    return out


MIXERS = {
    "linear_attention": Lightning,
    "full_attention": Softmax,
    "sliding_attention": Softmax,
    "cosformer2_attention": Cosformer2,
    "hgrn2_attention": Hgrn2,
    "latent_attention": Latent,
}


def reference_logits(model: HybridLM, tokens: list[int]) -> torch.Tensor:
    """[T, vocab] float64."""
    config, w = model.config, {name: tensor.double() for name, tensor in model.state_dict().items()}

    def part(prefix: str) -> Weights:
        return {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}

    layers = range(config.num_hidden_layers)
    attention = [MIXERS[kind](config, part(f"layers.{i}.self_attn."), i) for i, kind in enumerate(config.layer_types)]
    moes = [part(f"layers.{i}.mlp.") for i in layers]
    logits = []
    for token in tokens:
        x = w["embed_tokens.weight"][token] * config.embedding_multiplier
        for i, attend in enumerate(attention):
            kind = "full_attn" if isinstance(attend, Softmax | Latent) else "linear_attn"
            norms = {k.split(".")[2]: t for k, t in w.items() if k.startswith(f"layers.{i}.") and k.count(".") == 3}
            alpha, beta = (getattr(config, f"{kind}_{factor}_factor") for factor in ("alpha", "beta"))
            if config.norm_placement == "after":
                y = x * alpha + rms_norm(attend(x), norms["post_attention_layernorm"], config.rms_norm_eps) * beta
                mixed = feed_forward(y, config, moes[i])
                mixed = rms_norm(mixed, norms["post_feedforward_layernorm"], config.rms_norm_eps)
                x = y * config.mlp_alpha_factor + mixed * config.mlp_beta_factor
                continue
            n = rms_norm(x, norms["input_layernorm"], config.rms_norm_eps)
            if config.parallel_block:
                x = x * alpha + attend(n) * beta + feed_forward(n, config, moes[i]) * config.mlp_beta_factor
                continue
            y = (n if config.postnorm else x) * alpha + attend(n) * beta
            n = rms_norm(y, norms["post_attention_layernorm"], config.rms_norm_eps)
            mixed = feed_forward(n, config, moes[i])
            x = (n if config.postnorm else y) * config.mlp_alpha_factor + mixed * config.mlp_beta_factor
        last = rms_norm(x, w["norm.weight"], config.rms_norm_eps)
        logits.append(capped(w["lm_head.weight"] @ last / config.logits_scaling, config.final_logit_softcapping))
    return torch.stack(logits)


YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 8.0,
    "beta_slow": 0.2,
}

LATENT = {
    "layer_types": ("latent_attention", "linear_attention", "latent_attention"),
    "rotary_dim": 6,
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 7,
    "qk_rope_head_dim": 6,
    "v_head_dim": 5,
    "rope_interleave": True,
}
RING = {
    "num_attention_heads": 8,
    "lightning_activation": "none",
    "lightning_scale": "1/sqrt(d)",
    "lightning_rotary_dim": 4,
    "lightning_norm_groups": 4,
    "qk_norm": ("linear_attention", "full_attention"),
    "postnorm": False,
}
"""Ring-linear-2.0's attention."""

SALA = {
    "num_attention_heads": 6,
    "lightning_slope_factor": "none",
    "lightning_activation": "none",
    "lightning_scale": "1/sqrt(d)",
    "lightning_rotary_dim": 8,
    "rotary_dim": 0,
    "qk_norm": ("linear_attention",),
    "attn_output_gate": True,
    "embedding_multiplier": 12.0,
    "logits_scaling": 6.0,
    "num_local_experts": 0,
    "postnorm": False,
    **{f"{part}_beta_factor": 1.4 / 32**0.5 for part in ("full_attn", "linear_attn", "mlp")},
}
"""MiniCPM-SALA's model."""

VARIANTS = {
    "as released": {},
    "6 heads": {"num_attention_heads": 6},
    "full rotary": {"rotary_dim": 8, "rope_theta": 500.0},
    "no rotary": {"rotary_dim": 0},
    "interpolated": {"rope_scaling": {"rope_type": "linear", "factor": 3.5}},
    "half rotary, YaRN": {"rope_scaling": YARN},
    "full rotary, YaRN": {"rotary_dim": 8, "rope_theta": 500.0, "rope_scaling": YARN},
    "plain pre-norm": {"postnorm": False, "layer_types": ("full_attention", "linear_attention", "full_attention")},
    "window": {
        "layer_types": ("sliding_attention", "full_attention", "sliding_attention"),
        "sliding_window": 5,
        "full_attn_beta_factor": 0.7,
    },
    "cosformer2": {"layer_types": ("cosformer2_attention", "full_attention", "cosformer2_attention")},
    "hgrn2": {"layer_types": ("hgrn2_attention", "full_attention", "hgrn2_attention")},
    "hgrn2, wide heads": {"layer_types": ("hgrn2_attention",) * 3, "head_dim": 16},  # as the native body wants them
    "latent": LATENT,
    "latent, one projection of queries, half-split": LATENT | {"q_lora_rank": None, "rope_interleave": False},
    "latent, YaRN": LATENT | {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2}, "v_head_dim": 20},
    "norms after": {"postnorm": False, "norm_placement": "after", "mlp_beta_factor": 0.7, "full_attn_beta_factor": 1.2},
    "parallel blocks": {
        "postnorm": False,
        "parallel_block": True,
        "mlp_beta_factor": 0.7,
        "linear_attn_alpha_factor": 0.9,
    },
    "factors": {
        "full_attn_alpha_factor": 1.3,
        "full_attn_beta_factor": 0.7,
        "linear_attn_alpha_factor": 0.9,
        "linear_attn_beta_factor": 1.2,
        "mlp_alpha_factor": 1.1,
        "mlp_beta_factor": 0.8,
    },
    "shared expert": {"shared_intermediate_size": 12},
    "sigmoid router, groups, shared expert added": {
        "router": "sigmoid_groups",
        "num_local_experts": 6,
        "n_group": 3,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "shared_intermediate_size": 12,
        "shared_expert_gate": False,
        "mlp_types": ("dense", "experts", "experts"),
        "dense_intermediate_size": 20,
        "postnorm": False,
    },
    "sigmoid router, V2's groups": {
        "router": "sigmoid_groups",
        "num_local_experts": 6,
        "n_group": 2,
        "group_score": "max",
        "norm_topk_prob": False,
    },
    "dense": {"num_local_experts": 0},
    "first layer dense": {"mlp_types": ("dense", "experts", "experts"), "dense_intermediate_size": 20},
    "top 3 of 5": {"num_local_experts": 5, "num_experts_per_tok": 3},
    "tied": {"tie_word_embeddings": True},
    "Ring-linear": RING,
    "Ring-linear, the other factor, stretched": {
        **RING,
        "lightning_slope_factor": "previous_layer",
        "rotary_dim": 8,
        "rope_scaling": YARN,
    },
    "MiniCPM-SALA": SALA,
    "soft caps": {
        "layer_types": ("sliding_attention", "linear_attention", "full_attention"),
        "sliding_window": 5,
        "attn_logit_softcapping": 0.7,
        "final_logit_softcapping": 1.2,
        "logits_scaling": 0.5,
    },
    "window, normed and gated; SiLU and the other scale": {
        "layer_types": ("sliding_attention", "linear_attention", "hgrn2_attention"),
        "sliding_window": 5,
        "qk_norm": ("sliding_attention",),
        "attn_output_gate": True,
        "lightning_scale": "1/d",
        "lightning_norm_groups": 2,
    },
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_model_is_the_published_one(random_model: Callable[..., HybridLM], changes: dict) -> None:
    tokens = torch.randint(101, (1, 83), generator=torch.Generator().manual_seed(2))
    model = random_model(**changes)
    expected = reference_logits(model, tokens[0].tolist())
    with torch.no_grad():
        single, double = model(tokens)[0], model.double()(tokens)[0]
    scale = expected.abs().max()
    assert single.dtype == torch.float32
    assert (double - expected).abs().max() < 1e-11 * scale
    assert (single.double() - expected).abs().max() < 1e-5 * scale
