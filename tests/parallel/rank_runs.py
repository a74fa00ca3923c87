"""Runs of a small recipe on ranks that torchrun starts, as a user starts them."""

import os
import random
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leyden.core.config import dump_toml
from leyden.tokenizer import Tokenizer
from leyden.train import read_metrics

RECIPE = """
[model]
hidden_size = 32
num_hidden_layers = 2
layer_types = ["linear_attention", "full_attention"]
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
rotary_dim = 8
intermediate_size = 32
num_local_experts = 4

[tokenizer]
vocab_size = 400

[data]
text = ["{text}"]

[train]
dtype = "float32"
checkpoint_steps = 4

[[stage]]
name = "short"
objective = "pretrain"
steps = 6
seq_len = 32
batch_tokens = [[0, 256], [700, 512]]
micro_batch_tokens = 128
lr = 1e-2
warmup_steps = 2

[[stage]]
name = "long"
objective = "pretrain"
steps = 3
seq_len = 64
batch_tokens = 256
rope_theta = 80_000.0
lr = 2e-3

[evaluate]
prompts = ["the light"]
sample_tokens = 4
"""

TOTAL_STEPS = 9
_FAULTY = Path(__file__).with_name("faulty_run.py")
_TIMING = {"time", "tokens_per_second", "mfu"}


@dataclass(frozen=True)
class Ended:
    """How torchrun ended, and all that it and the ranks wrote to standard error."""

    code: int
    said: str


def write_recipe(folder: Path) -> Path:
    """A recipe, and 30 documents of words drawn with a seed."""
    (folder / "text").mkdir(parents=True)
    generator = random.Random(0)
    words = ["".join(generator.choices("etaoinshrdlu", k=generator.randint(2, 8))) for _ in range(300)]
    for number in range(30):
        chosen = generator.choices(words, weights=range(1, 301), k=500)
        (folder / "text" / f"{number:02}.txt").write_text(" ".join(chosen))
    path = folder / "small.toml"
    path.write_text(RECIPE.replace("{text}", str(folder / "text")))
    return path


def from_model(recipe: Path, model: Path, path: Path) -> Path:
    """The same recipe, whose run begins from ``model``."""
    said = tomllib.loads(recipe.read_text())
    del said["tokenizer"]
    path.write_text(dump_toml(said | {"model": {"from": str(model)}}))
    return path


def on_token_files(recipe: Path, tokenizer: Path, path: Path) -> Path:
    """The same recipe on one NumPy file of its documents' tokens, made with a tokenizer that is there."""
    made = Tokenizer.load(tokenizer)
    texts = sorted((recipe.parent / "text").iterdir())
    tokens = [token for text in texts for token in [made.bos_id, *made.encode(text.read_text()), made.eod_id]]
    np.save(path.with_suffix(".npy"), np.array(tokens, np.int32))
    data = {"tokens": [str(path.with_suffix(".npy"))], "held_out_fraction": 0.1}
    path.write_text(
        dump_toml(tomllib.loads(recipe.read_text()) | {"tokenizer": {"path": str(tokenizer)}, "data": data})
    )
    return path


def torchrun(
    *arguments: object, ranks: int = 2, restarts: int = 0, fault: tuple[str, int, int] | None = None, seconds: int = 280
) -> Ended:
    """``torchrun -m leyden ARGUMENTS``, with a fault (what, on which rank, in which step) or without."""
    program = ["-m", "leyden"] if fault is None else [str(_FAULTY), *map(str, fault)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [f"--max-restarts={restarts}", *program, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "200"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, env=environment)
    return Ended(ended.returncode, ended.stderr)


def metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without what a clock measured."""
    records = read_metrics(directory / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in _TIMING} for record in records]


def exit_codes(ended: Ended) -> list[int]:
    """Of the ranks that torchrun lists as failed, in its order."""
    return [int(code) for code in re.findall(r"exitcode\s*: (-?\d+)", ended.said)]
