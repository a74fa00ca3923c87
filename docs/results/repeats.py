"""After how many tokens does a small model learn that what comes again goes on as it did before?

Rows of random tokens that repeat several times: the first time nothing can be foretold, afterwards everything. The loss
of the repeats begins at the logarithm of the number of tokens that are drawn from, and falls when the model has learned
to look up. This is the simplest form of retrieval, and the quickest to train. See retrieval.md beside this file.

    python docs/results/repeats.py --layers LLLF --steps 400
"""

import argparse
import json
import math
import statistics
from typing import Any

import numpy as np
import torch

from leyden.model import HybridLM, ModelConfig
from leyden.train.optimizer import MasterAdamW

KINDS = {"L": "linear_attention", "F": "full_attention", "H": "hgrn2_attention", "C": "cosformer2_attention"}
TOKENS_PER_STEP = 1024
WARMUP_STEPS = 20
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "rotary_dim": 0,
    "intermediate_size": 128,
    "num_local_experts": 0,
}


def shape_of(layers: str, changes: dict[str, Any]) -> ModelConfig:
    """The model: a letter of ``layers`` for each layer, and any other field."""
    kinds = [KINDS[letter] for letter in layers]
    return ModelConfig.model_validate({**SHAPE, "num_hidden_layers": len(kinds), "layer_types": kinds, **changes})


def draw(generator: np.random.Generator, span: int, symbols: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [T] of rows that repeat, and their labels [T]: -100 where nothing can be foretold."""
    row, tokens, labels = 4 * span, [], []
    for _ in range(TOKENS_PER_STEP // row):
        own = int(generator.integers(span // 2, span + 1))  # else positions alone would tell where to look
        text = np.resize(generator.integers(0, symbols, own), row + 1)
        following = text[1:].copy()
        following[: own - 1] = -100
        tokens.append(text[:-1])
        labels.append(following)
    return np.concatenate(tokens), np.concatenate(labels)


def learn(
    model: HybridLM, optimizer: MasterAdamW, tokens: np.ndarray, labels: np.ndarray, bounds: torch.Tensor, lr: float
) -> float:
    """One optimizer step on a packed row.

    Args:
        model: is trained.
        optimizer: of its weights.
        tokens, labels: [T] int64; -100 where nothing is learned.
        bounds: [N + 1] int32, where the documents begin, and the end.
        lr: of this step.

    Returns:
        The mean loss in nats.
    """
    row, targets = torch.from_numpy(tokens)[None], torch.from_numpy(labels)[None]
    loss, _ = model.cross_entropy(model.features(row, cu_seqlens=bounds).hidden, targets)
    mean = loss / (targets >= 0).sum()
    mean.backward()
    optimizer.accumulate()
    optimizer.step(lr, divisor=optimizer.grad_norm().clamp_min(1.0))
    return mean.item()


def main() -> None:
    """Train and print the loss of the repeats."""
    parser = argparse.ArgumentParser(description="The loss of what repeats, while a small model is trained.")
    parser.add_argument(
        "--layers", default="LLLF", help="a letter a layer: L lightning, F softmax, H HGRN2, C cosFormer2"
    )
    parser.add_argument("--model", type=json.loads, default={}, help="other fields of the model, as JSON")
    parser.add_argument("--steps", type=int, default=400, help=f"of {TOKENS_PER_STEP} tokens")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--span", type=int, default=32, help="tokens that repeat, at most; at least half as many")
    parser.add_argument("--symbols", type=int, default=64, help="tokens that are drawn from")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = HybridLM(shape_of(given.layers, given.model), given.seed)
    optimizer, generator, losses = MasterAdamW(model), np.random.default_rng(given.seed), []
    row = 4 * given.span
    bounds = torch.arange(0, TOKENS_PER_STEP // row * row + 1, row, dtype=torch.int32)
    print(f"chance: {math.log(given.symbols):.3f} nats", flush=True)
    for step in range(1, given.steps + 1):
        tokens, labels = draw(generator, given.span, given.symbols)
        losses.append(learn(model, optimizer, tokens, labels, bounds, given.lr * min(1.0, step / WARMUP_STEPS)))
        if step % 50 == 0:
            print(f"step {step}: {statistics.fmean(losses[-50:]):.3f} nats", flush=True)


if __name__ == "__main__":
    main()
