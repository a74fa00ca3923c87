"""Ling-2.5 and 2.6 and Ring-linear-2.0 token by token in float64, from the published formulas, their config.json and
their tensor names."""

import math
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def frequencies(dims: int, config: dict[str, Any]) -> list[float]:
    base, scaling = config["rope_theta"], config.get("rope_scaling")
    plain = [base ** (-2 * i / dims) for i in range(dims // 2)]
    if not scaling:
        return plain
    length, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    fast, slow = (
        dims * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base))
        for turns in (scaling.get("beta_fast", 32), scaling.get("beta_slow", 1))
    )
    low, high = max(math.floor(fast), 0), min(math.ceil(slow), dims - 1)
    ramps = [min(max((i - low) / ((high - low) or 0.001), 0), 1) for i in range(dims // 2)]
    return [rate * (1 - ramp) + rate / factor * ramp for rate, ramp in zip(plain, ramps, strict=True)]


def turned(x: torch.Tensor, position: int, rates: list[float]) -> torch.Tensor:
    """The first dims of [H, D], pairs (i, i + R / 2)."""
    angles = torch.tensor([position * rate for rate in rates], dtype=torch.float64)
    cos, sin = (f(angles).float().double() for f in (torch.cos, torch.sin))  # float32 in every model
    half = len(rates)
    a, b, rest = x[:, :half], x[:, half : 2 * half], x[:, 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=1)


class Lightning:
    def __init__(self, config: dict[str, Any], w: Tensors, layer: int, offset: int) -> None:
        self.w, self.c, self.H, self.D, self.position = w, config, config["num_attention_heads"], config["head_dim"], 0
        factor = 1 - (layer - offset) / (config["num_hidden_layers"] - 1) + 1e-5
        slopes = torch.tensor([2 ** (-8 * (h + 1) / self.H) * factor for h in range(self.H)])  # H is a power of two
        self.decay = torch.exp(-slopes.float().double())
        self.S = torch.zeros(self.H, self.D, self.D, dtype=torch.float64)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.w["query_key_value.weight"] @ x).view(3, self.H, self.D)
        eps = self.c["rms_norm_eps"]
        q, k = rms(q, self.w["query_layernorm.weight"], eps), rms(k, self.w["key_layernorm.weight"], eps)
        rates = frequencies(int(self.D * self.c["partial_rotary_factor"]), self.c)
        q, k = turned(q, self.position, rates), turned(k, self.position, rates)
        self.position += 1
        self.S = self.decay[:, None, None] * self.S + k[:, :, None] * v[:, None, :]
        o = torch.einsum("hkv,hk->hv", self.S, q) / math.sqrt(self.D)
        groups = self.c["group_norm_size"]
        weight = self.w["g_norm.weight"].view(groups, -1)
        o = rms(o.reshape(groups, -1), weight, eps).flatten()
        return self.w["dense.weight"] @ (o / (1 + torch.exp(-self.w["g_proj.weight"] @ x)))


class Latent:
    def __init__(self, config: dict[str, Any], w: Tensors) -> None:
        self.w, self.c, self.H = w, config, config["num_attention_heads"]
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        w, c, H = self.w, self.c, self.H
        nope, rope, latent = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["kv_lora_rank"]
        rates, position = frequencies(rope, c), len(self.keys)

        def interleaved(y: torch.Tensor) -> torch.Tensor:
            return turned(torch.cat([y[:, 0::2], y[:, 1::2]], dim=1), position, rates)

        if c.get("q_lora_rank"):
            q = w["q_b_proj.weight"] @ rms(w["q_a_proj.weight"] @ x, w["q_a_layernorm.weight"], 1e-6)
        else:
            q = w["q_proj.weight"] @ x
        q, down = q.view(H, nope + rope), w["kv_a_proj_with_mqa.weight"] @ x
        made = w["kv_b_proj.weight"] @ rms(down[:latent], w["kv_a_layernorm.weight"], 1e-6)
        made = made.view(H, nope + c["v_head_dim"])
        shared = interleaved(down[None, latent:]).expand(H, rope)
        self.keys.append(torch.cat([made[:, :nope], shared], dim=1))
        self.values.append(made[:, nope:])
        q = torch.cat([q[:, :nope], interleaved(q[:, nope:])], dim=1)
        scale, scaling = (nope + rope) ** -0.5, c.get("rope_scaling") or {}
        if scaling.get("mscale_all_dim"):
            scale *= (0.1 * scaling["mscale_all_dim"] * math.log(scaling["factor"]) + 1) ** 2
        keys, values = torch.stack(self.keys), torch.stack(self.values)
        heads = [torch.softmax(keys[:, h] @ q[h] * scale, 0) @ values[:, h] for h in range(H)]
        return w["dense.weight"] @ torch.cat(heads)


class Grouped:
    """Softmax attention of Ring-linear-2.0: grouped queries, norms of queries and keys, RoPE on a part of each head."""

    def __init__(self, config: dict[str, Any], w: Tensors) -> None:
        self.w, self.c = w, config
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        w, c = self.w, self.c
        H, Hkv, D = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        rows, eps, rates = w["query_key_value.weight"] @ x, c["rms_norm_eps"], frequencies(D // 2, c)
        q, k, v = rows[: H * D].view(H, D), rows[H * D : (H + Hkv) * D].view(Hkv, D), rows[(H + Hkv) * D :].view(Hkv, D)
        position = len(self.keys)
        q = turned(rms(q, w["query_layernorm.weight"], eps), position, rates)
        self.keys.append(turned(rms(k, w["key_layernorm.weight"], eps), position, rates))
        self.values.append(v)
        keys, values = torch.stack(self.keys), torch.stack(self.values)
        heads = []
        for h in range(H):
            of = h * Hkv // H
            heads.append(torch.softmax(keys[:, of] @ q[h] / math.sqrt(D), 0) @ values[:, of])
        return w["dense.weight"] @ torch.cat(heads)


def swiglu(x: torch.Tensor, w: Tensors, prefix: str) -> torch.Tensor:
    gate, up, down = (w[f"{prefix}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return down @ (silu(gate @ x) * (up @ x))


def feed_forward(x: torch.Tensor, config: dict[str, Any], w: Tensors) -> torch.Tensor:
    if "gate.weight" not in w:
        return swiglu(x, w, "")
    p = torch.sigmoid(w["gate.weight"] @ x)
    chosen_by = (p + w["gate.expert_bias"]).view(config["n_group"], -1)
    groups = chosen_by.topk(2, dim=1).values.sum(1).topk(config["topk_group"]).indices
    allowed = torch.full_like(chosen_by, -torch.inf)
    allowed[groups] = chosen_by[groups]
    experts = allowed.flatten().topk(config["num_experts_per_tok"]).indices
    weights = p[experts] / (p[experts].sum() + 1e-20) * config["routed_scaling_factor"]
    y = swiglu(x, w, "shared_experts.")
    for weight, expert in zip(weights, experts, strict=True):
        y = y + weight * swiglu(x, w, f"experts.{expert}.")
    return y


def logits_of(config: dict[str, Any], tensors: Tensors, tokens: list[int], *, offset: int = 0) -> torch.Tensor:
    """[T, vocab] float64; ``offset`` 1 is the slope of the remote code, which counts layers from 1 less."""
    w, layers, group = {name: x.double() for name, x in tensors.items()}, config["num_hidden_layers"], 1

    def part(prefix: str) -> Tensors:
        return {name.removeprefix(prefix): x for name, x in w.items() if name.startswith(prefix)}

    group, attention = config["layer_group_size"], []
    for i in range(layers):
        softmax = (i + 1) % group == 0 or i >= layers // group * group
        own = part(f"model.layers.{i}.attention.")
        other = Latent if "kv_lora_rank" in config else Grouped
        attention.append(other(config, own) if softmax else Lightning(config, own, i, offset))
    mlps, eps, rows = [part(f"model.layers.{i}.mlp.") for i in range(layers)], config["rms_norm_eps"], []
    for token in tokens:
        x = w["model.word_embeddings.weight"][token]
        for i in range(layers):
            x = x + attention[i](rms(x, w[f"model.layers.{i}.input_layernorm.weight"], eps))
            normed = rms(x, w[f"model.layers.{i}.post_attention_layernorm.weight"], eps)
            x = x + feed_forward(normed, config, mlps[i])
        rows.append(w["lm_head.weight"] @ rms(x, w["model.norm.weight"], eps))
    return torch.stack(rows)
