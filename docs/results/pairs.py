"""Which layers does it take to recall pairs, for a small model that begins with few of them?

Multi-query associative recall (:mod:`leyden.evaluate.tasks.mqar`), of which the answers alone are learned: first of few
pairs, then of more. Models that begin with many pairs stay at chance for longer. See retrieval.md beside this file.

    python docs/results/pairs.py --layers LLLF --seeds 0,1,2
"""

import argparse
import json
import statistics
from typing import Any

import numpy as np
import torch
from repeats import TOKENS_PER_STEP, learn, shape_of

from leyden.evaluate.tasks.mqar import recall_sequence
from leyden.model import HybridLM
from leyden.train.optimizer import MasterAdamW

VOCABULARY = np.arange(1, 512)
"""Keys are of its first half, values of its second. Token 0 begins each sequence."""
WARMUP_STEPS = 50
ASKED = (2, 4, 8, 16)
"""Pairs of the sequences that measure, of 8 tokens a pair."""
SAMPLES = 64


def sequence(pairs: int, tokens_a_pair: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [T] of one sequence, and their labels [T]: -100 where no answer follows."""
    made = recall_sequence(VOCABULARY, max(10, pairs * tokens_a_pair), pairs, generator)
    tokens = np.concatenate([[0], made.tokens])
    labels = np.full(len(tokens), -100)
    labels[made.answers] = made.tokens[made.answers]
    return tokens, labels


def sequences(pairs: list[int], count: int, generator: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sequences of 5 to 8 tokens a pair, as many of each number of pairs."""
    return [sequence(pairs[k % len(pairs)], int(generator.integers(5, 9)), generator) for k in range(count)]


def draw(
    generator: np.random.Generator, pairs: list[int], pool: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Tokens, labels and bounds of about :data:`TOKENS_PER_STEP` tokens, of the pool; without one, of new sequences."""
    made: list[tuple[np.ndarray, np.ndarray]] = []
    while sum(len(tokens) for tokens, _ in made) < TOKENS_PER_STEP:
        made += [pool[generator.integers(len(pool))]] if pool else sequences(pairs, len(pairs), generator)
    tokens, labels = (np.concatenate(parts) for parts in zip(*made, strict=True))
    bounds = np.cumsum([0, *(len(tokens) for tokens, _ in made)])
    return tokens, labels, torch.from_numpy(bounds.astype(np.int32))


@torch.inference_mode()
def recalled(model: HybridLM, pairs: int) -> float:
    """The share of answers that are the most probable token, in sequences that no training has seen."""
    generator, right = np.random.default_rng([9, pairs]), []
    for _ in range(SAMPLES):
        tokens, labels = sequence(pairs, 8, generator)
        asked = labels >= 0
        best = model.logits(model.features(torch.from_numpy(tokens)[None]).hidden[0]).argmax(-1).numpy()
        right += (best[asked] == labels[asked]).tolist()
    return statistics.fmean(right)


def train(
    layers: str, seed: int, stages: list[tuple[list[int], float]], pool_size: int, lr: float, changes: dict[str, Any]
) -> None:
    """Train one model, and print what it recalls after every 0.1 million tokens."""
    model = HybridLM(shape_of(layers, {"rotary_dim": 8, "tie_word_embeddings": True, **changes}), seed)
    optimizer, generator, step, read = MasterAdamW(model), np.random.default_rng(seed), 0, 0
    goal = 0.0
    for pairs, num_tokens in stages:
        goal += num_tokens
        pool = sequences(pairs, pool_size, np.random.default_rng([5, seed]))
        while read < goal:
            tokens, labels, bounds = draw(generator, pairs, pool)
            step, before, read = step + 1, read, read + len(tokens)
            loss = learn(model, optimizer, tokens, labels, bounds, lr * min(1.0, step / WARMUP_STEPS))
            if before // 100_000 < read // 100_000 or read >= goal:
                shares = "  ".join(f"{asked}: {recalled(model, asked):.2f}" for asked in ASKED)
                print(f"{layers} seed {seed}  {read / 1e6:.2f}M tokens  loss {loss:.3f}  {shares}", flush=True)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="The share of pairs recalled, while a small model is trained.")
    parser.add_argument("--layers", default="LLLF", help="a letter a layer, as of repeats.py")
    parser.add_argument("--seeds", default="0", help="of the weights and of the data")
    parser.add_argument("--stage", action="append", help="PAIRS:TOKENS, as 1,2,4:0.8e6; once for each stage")
    parser.add_argument(
        "--pool", type=int, default=8000, help="sequences of a stage, read again and again; 0: none twice"
    )
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--model", type=json.loads, default={}, help="other fields of the model, as JSON")
    given = parser.parse_args()
    stages = []
    for stage in given.stage or ["1,2,4:0.8e6", "1,2,4,8:0.7e6"]:
        pairs, tokens = stage.split(":")
        stages.append(([int(number) for number in pairs.split(",")], float(tokens)))
    for seed in map(int, given.seeds.split(",")):
        train(given.layers, seed, stages, given.pool, given.lr, given.model)


if __name__ == "__main__":
    main()
