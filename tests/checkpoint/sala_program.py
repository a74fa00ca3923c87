"""MiniCPM-SALA and HypeNet token by token in float64, from formulas, config.json and tensor names as published."""

import math
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def slopes(heads: int) -> list[float]:
    """ALiBi's: a geometric series for powers of two, and every second one of the next power for what is left."""
    power = 2 ** math.floor(math.log2(heads))
    own = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    return own if power == heads else own + slopes(2 * power)[0::2][: heads - power]


def turned(x: torch.Tensor, position: int, base: float) -> torch.Tensor:
    """All dims of [H, D], pairs (i, i + D / 2)."""
    half = x.shape[1] // 2
    angles = torch.tensor([position * base ** (-2 * i / x.shape[1]) for i in range(half)], dtype=torch.float64)
    cos, sin = (f(angles).float().double() for f in (torch.cos, torch.sin))  # float32 in every model
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=1)


class Lightning:
    def __init__(self, config: dict[str, Any], w: Tensors) -> None:
        self.w, self.c, self.H, self.D, self.position = w, config, config["num_attention_heads"], config["head_dim"], 0
        self.decay = torch.exp(-torch.tensor(slopes(self.H)).double())  # slopes are float32 in every model
        self.S = torch.zeros(self.H, self.D, self.D, dtype=torch.float64)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = ((self.w[f"{name}_proj.weight"] @ x).view(self.H, self.D) for name in ("q", "k", "v"))
        if "q_norm.weight" in self.w:
            q = rms(q, self.w["q_norm.weight"], self.c["rms_norm_eps"])
            k = rms(k, self.w["k_norm.weight"], self.c["rms_norm_eps"])
        if self.c["lightning_use_rope"]:
            q, k = (turned(one, self.position, self.c["rope_theta"]) for one in (q, k))
        self.position += 1
        self.S = self.decay[:, None, None] * self.S + k[:, :, None] * v[:, None, :]
        scale = self.D**-0.5 if self.c["lightning_scale"] == "1/sqrt(d)" else 1 / self.D
        o = torch.einsum("hkv,hk->hv", self.S, q).flatten() * scale
        o = rms(o, self.w["o_norm.weight"], self.c["rms_norm_eps"]) * sigmoid(self.w["z_proj.weight"] @ x)
        return self.w["o_proj.weight"] @ o


class Softmax:
    def __init__(self, config: dict[str, Any], w: Tensors) -> None:
        self.w, self.c = w, config
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        H, shared, D = self.c["num_attention_heads"], self.c["num_key_value_heads"], self.c["head_dim"]
        q = (self.w["q_proj.weight"] @ x).view(H, D)
        k, v = ((self.w[f"{name}_proj.weight"] @ x).view(shared, D) for name in ("k", "v"))
        if "q_norm.weight" in self.w:
            q = rms(q, self.w["q_norm.weight"], self.c["rms_norm_eps"])
            k = rms(k, self.w["k_norm.weight"], self.c["rms_norm_eps"])
        self.keys.append(k)
        self.values.append(v)
        keys, values = torch.stack(self.keys), torch.stack(self.values)
        heads = [
            torch.softmax(keys[:, h * shared // H] @ q[h] * D**-0.5, 0) @ values[:, h * shared // H] for h in range(H)
        ]
        o = torch.cat(heads)
        if self.c["attn_use_output_gate"]:
            o = o * sigmoid(self.w["o_gate.weight"] @ x)
        return self.w["o_proj.weight"] @ o


def logits_of(config: dict[str, Any], tensors: Tensors, tokens: list[int]) -> torch.Tensor:
    """[T, vocab] float64."""
    w, layers = {name: x.double() for name, x in tensors.items()}, config["num_hidden_layers"]
    branch = config["scale_depth"] / math.sqrt(layers) if "scale_depth" in config else 1.0
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])

    def part(prefix: str) -> Tensors:
        return {name.removeprefix(prefix): x for name, x in w.items() if name.startswith(prefix)}

    attention = [
        (Lightning if kind == "lightning-attn" else Softmax)(config, part(f"model.layers.{i}.self_attn."))
        for i, kind in enumerate(config["mixer_types"])
    ]
    mlps, eps, rows = [part(f"model.layers.{i}.mlp.") for i in range(layers)], config["rms_norm_eps"], []
    for token in tokens:
        x = w["model.embed_tokens.weight"][token] * config.get("scale_emb", 1)
        for i in range(layers):
            x = x + branch * attention[i](rms(x, w[f"model.layers.{i}.input_layernorm.weight"], eps))
            normed = rms(x, w[f"model.layers.{i}.post_attention_layernorm.weight"], eps)
            gate, up = mlps[i]["gate_proj.weight"] @ normed, mlps[i]["up_proj.weight"] @ normed
            x = x + branch * (mlps[i]["down_proj.weight"] @ (gate * sigmoid(gate) * up))
        x = rms(x, w["model.norm.weight"], eps)
        rows.append(head @ (x * config["dim_model_base"] / config["hidden_size"] if "dim_model_base" in config else x))
    return torch.stack(rows)
