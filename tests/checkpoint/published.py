"""What tests of published layouts share: small random models on disk, and names of parts that families share."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from leyden.checkpoint import save
from leyden.model import HybridLM, ModelConfig


def write_random(config: ModelConfig, directory: Path, layout: str, dtype: torch.dtype = torch.float32) -> Path:
    """Save a model of ``config``, with weights so large that a wrong line shows, and biases that change choices."""
    model, generator = HybridLM(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * values if parameter.ndim == 1 else 0.25 * values)
    save(model.eval().to(dtype), None, directory, layout=layout)
    return directory


def content(directory: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """config.json and the tensors."""
    return json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")


def change(directory: Path, **changes: Any) -> None:
    """Edit config.json, as a user would."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (directory / "SHA256SUMS").unlink(missing_ok=True)


def bailing_feed_forward(config: dict[str, Any], layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a layer's feed-forward in Ling and Ring: dense in the first layers, then experts."""
    D, E, at = config["hidden_size"], config["num_experts"], f"model.layers.{layer}.mlp."

    def mlp(prefix: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{prefix}{name}_proj.weight", (width, D)) for name in ("gate", "up"))
        yield f"{prefix}down_proj.weight", (D, width)

    if layer < config["first_k_dense_replace"]:
        yield from mlp(at, config["intermediate_size"])
        return
    yield from ((f"{at}gate.weight", (E, D)), (f"{at}gate.expert_bias", (E,)))
    yield from mlp(f"{at}shared_experts.", config["moe_intermediate_size"])
    for expert in range(E):
        yield from mlp(f"{at}experts.{expert}.", config["moe_intermediate_size"])
