"""Muon against AdamW on the quickstart's recipe, in as many steps as equal minutes allow each.

Variants are trained in one process, a step of each in turn on the same batch, so that whatever else the machine does
meets all of them alike; that also gives the ratio of their times. Rates are chosen on other text than the quickstart's
(the source of torch, which is installed): the quickstart's held-out documents are looked at once, at the end. What is
done is kept in ``muon.json`` and not done again. See muon.md beside this file.

    python docs/results/muon.py --tune
    python docs/results/muon.py --seeds 0,1,2,3,4
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from claim import write_json

from leyden.core.device import keep_freed_memory
from leyden.core.log import progress, say
from leyden.evaluate import bits_per_byte
from leyden.recipes import Recipe, load_recipe
from leyden.recipes.batches import make_batches
from leyden.recipes.prepare import Prepared, prepare, read_prepared
from leyden.train import Pretrain, TrainState, build_state
from leyden.train.step import train_step

RESULTS = Path(__file__).with_name("muon.json")
STEPS = 467
"""Of AdamW: what the quickstart took in its minutes when README's figures were measured."""
TUNING_STEPS = 100
HELD_OUT_BYTES = 300_000
"""That rates are judged by; of the quickstart's own held-out documents, all are."""


@dataclass(frozen=True)
class Variant:
    """An optimizer and its rate.

    Attributes:
        optimizer: ``adamw`` or ``muon``.
        lr: of the stage.
        lr_factor: of Muon, by which its rate is larger.
    """

    optimizer: str
    lr: float
    lr_factor: float = 1.0

    @property
    def settings(self) -> list[str]:
        """Of the recipe."""
        muon = [f"train.optimizer.muon.lr_factor={self.lr_factor}"] if self.optimizer == "muon" else []
        return [f"stage.pretrain.lr={self.lr}", f"stage.pretrain.final_lr={self.lr / 20}", *muon]

    def __str__(self) -> str:
        return f"{self.optimizer} {self.lr:g}" + (f" x{self.lr_factor:g}" if self.lr_factor != 1 else "")


GRID = (
    Variant("adamw", 3e-3),
    Variant("adamw", 6e-3),
    Variant("muon", 3e-3),
    Variant("muon", 3e-3, 2.0),
    Variant("muon", 3e-3, 4.0),
    Variant("muon", 6e-3),
)


@dataclass
class Trained:
    """A variant in training.

    Attributes:
        variant: which.
        recipe: with its settings.
        steps: that it takes.
        state: model and optimizer.
        seconds, losses: of its steps.
    """

    variant: Variant
    recipe: Recipe
    steps: int
    state: TrainState
    seconds: list[float]
    losses: list[float]

    @classmethod
    def begin(cls, variant: Variant, steps: int, seed: int, settings: Sequence[str]) -> "Trained":
        recipe = load_recipe("quickstart", [*settings, *variant.settings, f"train.seed={seed}"])
        recipe = recipe.model_copy(update={"train": recipe.train.settled()})
        state = build_state(recipe.model, recipe.train, row_tokens=recipe.stage[0].seq_len)
        return cls(variant, recipe, steps, state, [], [])

    def step(self, batch: Any) -> None:
        """One, unless it has taken all of them."""
        number = len(self.losses)
        if number == self.steps:
            return
        began = time.perf_counter()
        lr = self.recipe.stage[0].lr_at(number, self.steps)
        result = train_step(self.state, [batch], Pretrain(), lr=lr, clip_norm=self.recipe.train.clip_norm)
        self.seconds.append(time.perf_counter() - began)
        self.losses.append(result.loss)


def train(
    variants: Sequence[tuple[Variant, int]], recipe: Recipe, prepared: Prepared, seed: int, settings: Sequence[str]
) -> list[Trained]:
    """Variants with their steps, in turns on the same batches."""
    trained = [Trained.begin(variant, steps, seed, settings) for variant, steps in variants]
    batches = make_batches(recipe.model_copy(update={"train": trained[0].recipe.train}), 0, prepared)
    longest = max(one.steps for one in trained)
    with progress("steps of each", longest, "steps") as bar:
        for number in range(longest):
            batch = batches.batch(number)
            for place in range(len(trained)):  # another one first each time
                trained[(place + number) % len(trained)].step(batch)
            bar.advance()
            if number % 50 == 49:
                said = (f"{one.variant} {statistics.mean(one.losses[-50:]):.3f}" for one in trained)
                say(f"step {number + 1}: {', '.join(said)}")
    return trained


def measure(one: Trained, prepared: Prepared, most_bytes: int | None = None) -> float:
    """Bits per byte on held-out documents, of all or of about ``most_bytes``, none longer than a sixteenth of these."""
    texts = [document.text for document in prepared.held_out]
    if most_bytes is not None:
        texts, taken = [], 0
        for document in prepared.held_out:
            if taken < most_bytes:
                texts.append(document.text[: most_bytes // 16])
                taken += len(texts[-1])
    with torch.no_grad():
        return bits_per_byte(one.state.model.eval(), prepared.tokenizer, texts).bits_per_byte


def ratio_of(trained: Sequence[Trained]) -> float:
    """How many times as long a step with Muon takes as one with AdamW: the median over the turns."""
    kinds = {kind: [one.seconds for one in trained if one.variant.optimizer == kind] for kind in ("adamw", "muon")}
    adamw, muon = ([sum(turn) / len(turn) for turn in zip(*kinds[kind], strict=True)] for kind in ("adamw", "muon"))
    return statistics.median(b / a for a, b in zip(adamw, muon, strict=True))


def prepared_in(folder: Path, settings: Sequence[str]) -> tuple[Recipe, Prepared]:
    """The quickstart's recipe on its text or another, and its tokens, made once."""
    recipe = load_recipe("quickstart", settings)
    folder.mkdir(parents=True, exist_ok=True)
    prepare(recipe, folder)
    return recipe, read_prepared(recipe, folder)


def other_text() -> list[str]:
    """The settings that take the source of torch for text."""
    return [f"data.text.text={json.dumps([str(Path(torch.__file__).parent)])}", "stage.pretrain.steps=1"]


def chosen(results: dict[str, Any]) -> tuple[Variant, Variant]:
    """The best of each optimizer by the tuning."""
    tuned = results["tuning"]["bits_per_byte"]
    best = {
        kind: min((v for v in GRID if v.optimizer == kind), key=lambda v: tuned[str(v)]) for kind in ("adamw", "muon")
    }
    return best["adamw"], best["muon"]


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="Muon against AdamW; see muon.md beside this file.")
    parser.add_argument("--tune", action="store_true", help="their rates, on other text")
    parser.add_argument("--seeds", default="", help="as in 0,1,2: the comparison")
    parser.add_argument("--dir", type=Path, default=Path("runs/muon"), help="where tokens are kept")
    given = parser.parse_args()
    keep_freed_memory()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"runs": {}}
    if given.tune:
        recipe, prepared = prepared_in(given.dir / "other", other_text())
        tuned = results.setdefault("tuning", {"steps": TUNING_STEPS, "bits_per_byte": {}})["bits_per_byte"]
        wanted = [(variant, TUNING_STEPS) for variant in GRID if str(variant) not in tuned]
        trained = train(wanted, recipe, prepared, 0, other_text())
        tuned |= {str(one.variant): measure(one, prepared, HELD_OUT_BYTES) for one in trained}
        if {one.variant.optimizer for one in trained} == {"adamw", "muon"}:
            results["time"] = {"threads": torch.get_num_threads(), "ratio": ratio_of(trained)}
        say("; ".join(f"{name}: {value:.4f}" for name, value in tuned.items()))
    write_json(RESULTS, results)
    for seed in given.seeds.split(",") if given.seeds else ():
        if seed in results["runs"]:
            continue
        recipe, prepared = prepared_in(given.dir / "text", ["stage.pretrain.steps=1"])
        adamw, muon = chosen(results)
        pair = [(adamw, STEPS), (muon, round(STEPS / results["time"]["ratio"]))]
        trained = train(pair, recipe, prepared, int(seed), ["stage.pretrain.steps=1"])
        found: dict[str, Any] = {"ratio": ratio_of(trained)}
        for one in trained:
            say(f"{one.variant}: loss of the last 50 steps {statistics.mean(one.losses[-50:]):.3f}")
            found[one.variant.optimizer] = {
                "variant": str(one.variant),
                "steps": one.steps,
                "training_loss": statistics.mean(one.losses[-50:]),
                "bits_per_byte": measure(one, prepared),
            }
        results["runs"][seed] = found
        write_json(RESULTS, results)
        say(f"seed {seed}: {results['runs'][seed]}")


if __name__ == "__main__":
    main()
