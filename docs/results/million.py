"""What do a million tokens cost on this machine: time, memory, and the tokens that are written behind them?

A model of a recipe's shape with random weights reads random tokens through the engine, chunk by chunk, and goes on
writing. One line of JSON for each length. See million.md beside this file.

    python docs/results/million.py docs/results/million.toml --lengths 1k,1m
"""

import argparse
import json
import statistics
import time

import torch

from leyden.bench.memory import peak_bytes, reset_peak, resident_bytes
from leyden.cli.options import lengths_of
from leyden.core.device import compute_dtype
from leyden.model import PAGE, HybridLM, ModelConfig, count_model, prefill_flops
from leyden.recipes.info import read_shape
from leyden.serve import Engine, Sampling

KINDS = {"L": "linear_attention", "F": "full_attention"}


def measure(config: ModelConfig, length: int, written: int, dtype: torch.dtype) -> dict[str, object]:
    """Read ``length`` tokens and write ``written`` more; what it took beside what is predicted."""
    count = count_model(config)
    prompt = torch.randint(config.vocab_size, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    before = resident_bytes()
    reset_peak()
    model = HybridLM(config, 0).to(dtype).eval()
    pages = -(-(length + written) // PAGE) * PAGE
    gigabytes = max(1, pages * count.key_value_bytes_per_token(dtype)) / 2**30
    engine = Engine(model, max_sequences=1, kv_gigabytes=gigabytes, cache_gigabytes=0, swap_gigabytes=0)
    times = [time.perf_counter()]
    for _ in engine.stream(prompt, Sampling(max_tokens=written, temperature=0)):
        times.append(time.perf_counter())
    peak = peak_bytes() - before
    predicted = count.weight_bytes(dtype) + count.fixed_bytes(dtype) + length * count.key_value_bytes_per_token(dtype)
    gaps = sorted(1000 * (after - earlier) for earlier, after in zip(times[1:], times[2:], strict=False))
    seconds = times[1] - times[0]
    return {
        "length": length,
        "dtype": str(dtype).removeprefix("torch."),
        "prefill_seconds": round(seconds, 2),
        "prefill_flops": prefill_flops(config, length),
        "gflops_per_second": round(prefill_flops(config, length) / seconds / 1e9, 1),
        "peak_bytes": peak,
        "predicted_bytes": predicted,
        "ratio": round(peak / predicted, 3),
        "decode_ms": round(statistics.median(gaps), 3),
        "decode_ms_quartiles": [round(gaps[len(gaps) // 4], 3), round(gaps[3 * len(gaps) // 4], 3)],
    }


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="Time and memory of long contexts, with random weights.")
    parser.add_argument("recipe", help="whose model it is, or a preset")
    parser.add_argument("--lengths", default="1k,1m", help="tokens of the prompts")
    parser.add_argument("--layers", help="a letter a layer, L or F; the recipe's where left out")
    parser.add_argument("--written", type=int, default=65, help="tokens that are written behind each prompt")
    parser.add_argument("--set", action="append", default=[], help="changes of the recipe, as leyden info takes them")
    given = parser.parse_args()
    settings = given.set
    if given.layers:
        kinds = ", ".join(f'"{KINDS[letter]}"' for letter in given.layers)
        settings = [*settings, f"model.num_hidden_layers={len(given.layers)}", f"model.layer_types=[{kinds}]"]
    config = read_shape(given.recipe, settings)
    dtype, why = compute_dtype(torch.device("cpu"))
    print(f"# {', '.join(config.layer_types)}; {torch.get_num_threads()} threads; {why}", flush=True)
    for length in lengths_of(given.lengths):
        print(json.dumps(measure(config, length, given.written, dtype)), flush=True)


if __name__ == "__main__":
    main()
