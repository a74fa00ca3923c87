"""From 1K to 64K tokens by stages, and how far beyond: a hybrid that finds needles, trained and asked.

Documents of needles in text are made for each stage of ``extension.toml``, as long as its rows, so that what is asked
for lies as far back as a row reaches; the answers alone are learned. Then the model is asked the grids of ``leyden
eval --task niah`` on text that it has not read. Each finished run is kept in ``extension.json`` and not done again:
the same command goes on where it was stopped. See extension.md beside this file.

    python docs/results/extension.py --seeds 0,1,2
    python docs/results/extension.py --draw
"""

import argparse
import json
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from claim import write_json, write_tokens
from matplotlib.figure import Figure

from leyden.core.device import find_device
from leyden.core.lengths import tokens_of
from leyden.core.log import say
from leyden.data import read_documents, standard_library_sources
from leyden.data.sources import STANDARD_LIBRARY
from leyden.evaluate import Options, evaluate
from leyden.evaluate.opening import open_model
from leyden.evaluate.scores import wilson
from leyden.evaluate.tasks.niah import CITIES
from leyden.recipes import load_recipe, run
from leyden.recipes.schema import Recipe
from leyden.tokenizer import Tokenizer

HERE = Path(__file__).parent
RECIPE, RESULTS = HERE / "extension.toml", HERE / "extension.json"
TRAINED_ON = ("asyncio", "ctypes", "email", "idlelib", "importlib", "lib2to3", "multiprocessing", "tkinter", "unittest")
"""Packages of the standard library."""
UNSEEN = "test"
"""The package that needles are hidden in when the model is asked; none of it is trained on."""
UNSEEN_BYTES = 8_000_000
VOCABULARY = 2_560
"""Room for a token for every city and for every three digits."""
BEGUN = "1k"
"""Where the variants part: at the end of this stage."""
STEPS, ONE_BASE, BEFORE, WHOLE = "larger bases", "one base", "before the extension", "RoPE on whole heads"
SETTINGS: dict[str, list[str]] = {
    STEPS: [],
    ONE_BASE: [f"stage.{name}.rope_theta=10000.0" for name in ("4k", "16k", "64k")],
    BEFORE: [],
    WHOLE: ["model.rotary_dim=32"],
}
"""What is compared, by settings of the recipe. ``one base`` goes on from the first one's checkpoint, and ``before the
extension`` is that checkpoint."""
LAYERS: dict[str, list[str]] = {
    "softmax": ["full_attention"] * 4,
    "lightning": ["linear_attention"] * 4,
    "window": ["sliding_attention"] * 3 + ["full_attention"],
    "cosformer2": ["cosformer2_attention"] * 3 + ["full_attention"],
    "hgrn2": ["hgrn2_attention"] * 3 + ["full_attention"],
}
"""Models of other layers: they learn what ``before the extension`` has learned, and are asked up to 16K."""
WINDOW = 64
"""Keys that a layer with a window sees, as in claim.py."""
SETTINGS |= {
    name: [f"model.layer_types={json.dumps(types)}", *([f"model.sliding_window={WINDOW}"] if name == "window" else [])]
    for name, types in LAYERS.items()
}
GRIDS = {("1k", "4k", "16k"): 2, ("64k",): 2, ("256k",): 1}
"""Lengths, and how many haystacks of each; every haystack holds a needle at each depth."""
DEPTHS = 5
MOST_NEEDLES = 48
"""In one document."""
TOKENS_A_NEEDLE = 48
"""Of a document in text, at least so many for each needle; the question takes half of them."""


class Needles:
    """Documents of needles and questions, as tokens.

    Args:
        tokenizer: to which each city is one token, and each number three (three digits, three digits, one).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._cities = np.array([_only(tokenizer.encode(f" {city}")) for city in CITIES])
        self._digits = np.array([_only(tokenizer.encode(f"{number:03d}")) for number in range(1000)])
        self._last = np.array([_only(tokenizer.encode(str(digit))) for digit in range(10)])
        begun = f"The special magic {CITIES[0]} number is: 1234567."
        self._needle = np.array(tokenizer.encode(f"\n{begun}\n"))
        self._question = np.array(tokenizer.encode(f"\n\nWhat is the special magic {CITIES[0]} number? {begun}"))

    def document(self, hay: np.ndarray, count: int, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Needles anywhere in ``hay``, and then a question for each of them. In half of the documents the last needle
        ends the hay and is asked for first, as ``niah`` does at a depth of 100 %.

        Returns:
            Tokens [T], and [T] bool: which of them are an answer, with the space before it and the stop behind it.
        """
        cities = draws.choice(len(CITIES), count, replace=False).tolist()
        numbers = draws.integers(10**6, 10**7, count).tolist()
        places, asked = np.sort(draws.integers(0, len(hay) + 1, count)), draws.permutation(count)
        if draws.random() < 0.5:
            places[-1] = len(hay)
            asked = np.concatenate([[count - 1], asked[asked != count - 1]])
        parts, done = [np.array([self._tokenizer.bos_id])], 0
        for city, number, place in zip(cities, numbers, places, strict=True):
            parts += [hay[done:place], self._fill(self._needle, city, number)[0]]
            done = place
        parts.append(hay[done:])
        learned = [np.zeros(sum(map(len, parts)), bool)]
        for index in asked:
            question, first = self._fill(self._question, cities[index], numbers[index])
            parts.append(question)
            learned.append(_span(len(question), first - 1, first + 4))
        return self._ended(parts, learned)

    def list_twice(self, count: int, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The ends of needles, from the city on, in a row, and then all of them in another order, to be learned.

        Returns:
            As :meth:`document`.
        """
        cities = draws.choice(len(CITIES), count, replace=False).tolist()
        numbers = draws.integers(10**6, 10**7, count).tolist()
        end = self._needle[int(np.nonzero(self._needle == self._cities[0])[0][0]) :]
        made = [self._fill(end, city, number) for city, number in zip(cities, numbers, strict=True)]
        again = [made[index] for index in draws.permutation(count)]
        parts = [np.array([self._tokenizer.bos_id]), *(part for part, _ in [*made, *again])]
        learned = [np.zeros(1 + count * len(end), bool)]
        learned += [_span(len(part), first, first + 3) for part, first in again]
        return self._ended(parts, learned)

    def overhead(self, count: int) -> int:
        """Tokens of a document with so many needles, besides its hay."""
        return 2 + count * (len(self._needle) + len(self._question))

    def _fill(self, template: np.ndarray, city: int, number: int) -> tuple[np.ndarray, int]:
        """The template with another city and number, and where the number begins."""
        first = int(np.nonzero(template == self._digits[123])[0][-1])
        made = np.where(template == self._cities[0], self._cities[city], template)
        digits = self._digits[number // 10_000], self._digits[number // 10 % 1000], self._last[number % 10]
        made[first : first + 3] = digits
        return made, first

    def _ended(self, parts: list[np.ndarray], learned: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.concatenate([*parts, np.array([self._tokenizer.eod_id])])
        return tokens, np.concatenate([*learned, np.zeros(1, bool)])


def _span(length: int, begin: int, end: int) -> np.ndarray:
    places = np.arange(length)
    return (begin <= places) & (places < end)


def _only(tokens: list[int]) -> int:
    (token,) = tokens
    return token


def prepare(folder: Path) -> None:
    """Make the tokenizer, a token file for each stage, and the text that needles are hidden in to ask for them."""
    stages = _stages()
    if (folder / f"{stages[-1]['name']}.ds.index").exists():
        return
    texts = [text for name in TRAINED_ON for text in _package(name)]
    (folder / "unseen.txt").write_text("\n\n".join(_package(UNSEEN))[:UNSEEN_BYTES], encoding="utf-8")
    draws = np.random.default_rng(0)
    tokenizer = Tokenizer.train([*texts[::10], *_sentences(draws)], vocab_size=VOCABULARY)
    tokenizer.save(folder / "tokenizer")
    text = np.concatenate([np.array(tokens) for tokens in tokenizer.encode_batch(texts)])
    say(f"{len(text):,} tokens of text to hide needles in")
    needles = Needles(tokenizer)
    for stage in stages:
        write_documents(folder / f"{stage['name']}.ds", needles, text, stage["seq_len"], stage["tokens"], draws)


def _stages() -> list[dict[str, Any]]:
    """As the recipe has them, which is complete only with a tokenizer."""
    return tomllib.loads(RECIPE.read_text(encoding="utf-8"))["stage"]


def _package(name: str) -> list[str]:
    return [document.text for document in read_documents(standard_library_sources(f"{STANDARD_LIBRARY}/{name}"), [])]


def write_documents(
    path: Path, needles: Needles, text: np.ndarray, length: int, tokens: int, draws: np.random.Generator
) -> None:
    """Documents of at most ``length`` tokens, and of ``tokens`` and some more altogether: none is read twice."""
    parts, learned, total = [], [], 0
    while total < 1.1 * tokens + 3 * length:
        if path.stem == "short":
            made, answers = needles.list_twice(int(np.exp(draws.uniform(np.log(4), np.log(17)))), draws)
        else:
            if path.stem == "dense":
                count = int(np.exp(draws.uniform(np.log(2), np.log(17))))
                size = count * int(draws.integers(4))
            else:
                whole = int(draws.integers(length // 8 if length < 4096 else 3 * length // 4, length - 1))
                count = max(1, min(MOST_NEEDLES, whole // TOKENS_A_NEEDLE))
                size = whole - needles.overhead(count)
            start = int(draws.integers(len(text) - size))
            made, answers = needles.document(text[start : start + size], count, draws)
        parts.append(made)
        learned.append(answers)
        total += len(made)
    ends = np.cumsum([len(part) for part in parts])
    write_tokens(path, np.concatenate(parts), ends, np.concatenate(learned))


def _sentences(draws: np.random.Generator) -> list[str]:
    """Text from which a tokenizer learns the cities, and every number of three digits."""
    asked = [
        f"\nThe special magic {city} number is:\n\n\nWhat is the special magic {city} number?\n" for city in CITIES
    ]
    return ["".join(asked * 60)] + [" ".join(f"{number:03d}" for number in draws.permutation(1000)) for _ in range(300)]


def recipe_of(variant: str, seed: int, folder: Path) -> Recipe:
    """The recipe of a run, with its data, its seed and what the variant changes."""
    data = folder.resolve()
    settings = [
        f"tokenizer.path={data / 'tokenizer'}",
        *(f'data.tokens.{name}=["{data / name}.ds"]' for name in (stage["name"] for stage in _stages())),
        f"train.seed={seed}",
        *SETTINGS[variant],
    ]
    return load_recipe(str(RECIPE), settings)


def trained(variant: str, seed: int, folder: Path) -> Path:
    """The model of a variant, trained as far as it is not yet."""
    whole = folder / f"{STEPS}-{seed}".replace(" ", "-")
    recipe = recipe_of(variant, seed, folder)
    names = [stage.name for stage in recipe.stage]
    parted = sum(stage.total_steps or 0 for stage in recipe.stage[: names.index(BEGUN) + 1])
    if variant == BEFORE:
        return whole / "checkpoints" / f"step_{parted:08d}"
    if variant in LAYERS:
        recipe = recipe.model_copy(update={"stage": recipe.stage[: names.index(BEGUN) + 1]})
    directory = folder / f"{variant}-{seed}".replace(" ", "-")
    run(recipe, directory, origin=f"{whole}@{parted}" if variant == ONE_BASE else None)
    return directory


def measure(variant: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one model and ask it for needles of every length and depth."""
    started = time.perf_counter()
    model = trained(variant, seed, folder)
    seconds, cells = round(time.perf_counter() - started), []
    source, subject = open_model(str(model), find_device(None), (folder / "unseen.txt",))
    for lengths, samples in list(GRIDS.items())[: 1 if variant in LAYERS else None]:
        options = Options(lengths=tuple(map(tokens_of, lengths)), depths=DEPTHS, samples=samples)
        name = f"scores-{variant}-{seed}".replace(" ", "-")
        (niah,) = evaluate(source, subject, ["niah"], options, folder / name / lengths[-1])
        cells += niah["cells"]
    return {"variant": variant, "seed": seed, "training_seconds": seconds, "cells": cells}


def share(cells: Sequence[dict[str, Any]]) -> tuple[float, int]:
    """Of all needles of some cells, the share found, and how many there are."""
    n = sum(cell["n"] for cell in cells)
    return sum(cell["value"] * cell["n"] for cell in cells) / n, n


def draw(done: Sequence[dict[str, Any]]) -> None:
    """Print a table, a row a variant, and draw a heat map of length by depth for each."""
    lengths = sorted({cell["length"] for one in done for cell in one["cells"]})
    depths = sorted({cell["depth"] for one in done for cell in one["cells"]})
    variants = [name for name in SETTINGS if any(one["variant"] == name for one in done)]
    figure = Figure(figsize=(2.6 * len(variants) + 0.8, 2.6), layout="constrained")
    axes = figure.subplots(1, len(variants), squeeze=False)[0]
    print("| variant | seeds | " + " | ".join(f"{length // 1024}K" for length in lengths) + " |")
    print("|---" * (2 + len(lengths)) + "|")
    for variant, axis in zip(variants, axes, strict=True):
        runs = [one for one in done if one["variant"] == variant]
        cells = [cell for one in runs for cell in one["cells"]]
        texts = []
        for length in lengths:
            asked = [cell for cell in cells if cell["length"] == length]
            if not asked:
                texts.append("not asked")
                continue
            value, n = share(asked)
            low, high = wilson(round(value * n), n)
            texts.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
        print(f"| {variant} | {', '.join(str(one['seed']) for one in runs)} | " + " | ".join(texts) + " |")
        columns = sorted({cell["length"] for cell in cells})
        grid = [
            [share([c for c in cells if (c["length"], c["depth"]) == (length, depth)])[0] for length in columns]
            for depth in depths
        ]
        axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for row, values in enumerate(grid):
            for column, value in enumerate(values):
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7)
        axis.set_xticks(range(len(columns)), [f"{length // 1024}K" for length in columns])
        axis.set_yticks(range(len(depths)), [f"{depth:g} %" for depth in depths])
        axis.set_title(variant, fontsize=9)
    figure.savefig(HERE / "extension.svg", metadata={"Date": None})


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="From 1K to 64K tokens by stages; see extension.md beside this file.")
    parser.add_argument("--dir", type=Path, default=Path("runs/extension"), help="where data and runs are kept")
    parser.add_argument("--variants", default=",".join(SETTINGS), help="which of them")
    parser.add_argument("--seeds", default="0", help="of the weights and of the order of the data")
    parser.add_argument(
        "--draw", action="store_true", help="print the table and draw extension.svg of what is measured"
    )
    given = parser.parse_args()
    if not given.draw:
        given.dir.mkdir(parents=True, exist_ok=True)
        prepare(given.dir)
        for seed in map(int, given.seeds.split(",")):
            for variant in given.variants.split(","):
                if all((one["variant"], one["seed"]) != (variant, seed) for one in _done()):
                    say(f"{variant}, seed {seed}")
                    measured = measure(variant, seed, given.dir)
                    write_json(RESULTS, [*_done(), measured])
    if done := _done():
        draw(done)


def _done() -> list[dict[str, Any]]:
    """What is measured already, by another process too."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []


if __name__ == "__main__":
    main()
