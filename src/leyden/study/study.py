"""The directory of a study: its experiment, items, tokenizer, token shards and scores.

Everything in it is made once and found again; an interrupted study goes on with the training run that it was in.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leyden.core.errors import Interrupted, UserError
from leyden.core.files import atomic_file, discard
from leyden.core.launch import Launch
from leyden.core.log import Bar, progress
from leyden.data import Document, TokenShards, write_shards
from leyden.data.builds.run import run_build
from leyden.data.builds.text import documents_of, text_recipe
from leyden.study.experiment import Experiment, Variant
from leyden.study.items import Item, build_items, items_fingerprint, read_items, shuffle_words, write_items
from leyden.study.metric import Reading, ScoreTable
from leyden.tokenizer import Tokenizer

_ITEM_SEED = 0
_BUILDS = "builds"
"""Data builds of the documents, while a study is begun."""


@dataclass(frozen=True)
class Run:
    """One model of a study.

    Attributes:
        purpose: ``pilot``, ``test`` or ``null``; runs of one purpose are never read for another.
        variant: whose data it was trained on.
        seed: of initialisation and order.
    """

    purpose: str
    variant: str
    seed: int


class Study:
    """A prepared study.

    Attributes:
        directory: where it lies.
        experiment: what it is of.
        items: every item of every benchmark.
        fingerprint: of all that a score depends on beside variant and seed: experiment, items and data.
    """

    def __init__(self, directory: Path) -> None:
        """Open a study that :func:`prepare` made.

        Raises:
            UserError: there is none, or its files do not fit together any more.
        """
        path = directory / "study.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{directory} holds no study; begin one: leyden study data plan EXPERIMENT --dir DIR."
            ) from None
        except ValueError:
            raise UserError(f"{path} is damaged; begin the study again in a new directory.") from None
        self.directory = directory
        self.experiment = Experiment.parse(record["experiment"], str(path))
        self.items = read_items(directory / "items.jsonl")
        self.fingerprint = fingerprint(record)
        if items_fingerprint(self.items) != record["items"]:
            raise UserError(
                f"{directory / 'items.jsonl'} was changed after the study began; restore it, or begin a new study."
            )
        self._data: dict[str, str] = record["data"]

    def scores(self, runs: Sequence[Run], reading: Reading, plan: str | None = None) -> ScoreTable:
        """[S, I] a benchmark, of finished runs.

        Args:
            runs: of one variant.
            reading: of byte normalisation.
            plan: the fingerprint of the plan that the runs must have been made under.

        Raises:
            UserError: a run is missing, or was made of other data or items, or under another plan.
        """
        from leyden.study.likelihood import item_scores

        rows = [item_scores(self.items, self._read(run, plan), reading) for run in runs]
        of = np.array([item.benchmark for item in self.items])
        return {name: np.stack(rows)[:, of == name] for name in dict.fromkeys(of.tolist())}

    def carry_out(self, runs: Sequence[Run], title: str, plan: str | None = None) -> None:
        """Train and score every run that has no scores yet.

        Raises:
            Interrupted: Ctrl-C; finished runs are kept, and the one that was being trained has a checkpoint.
            UserError: scores are there that were made under another plan.
        """
        missing = [run for run in runs if not self._path(run).exists()]
        for run in runs:
            if run not in missing:
                self._read(run, plan)
        if not missing:
            return
        with progress(title, float(len(missing)), "runs") as bar:
            try:
                for run in missing:
                    self._write(run, self._make(run, bar), plan)
                    discard(self._run_dir(run) / "checkpoints")
            except (KeyboardInterrupt, Interrupted):
                left = sum(not self._path(run).exists() for run in runs)
                raise Interrupted(
                    f"Stopped; {len(runs) - left} of {len(runs)} runs are kept. The same command goes on from there."
                ) from None

    def epochs(self) -> dict[str, float]:
        """How often a run uses each document that it uses, by variant; variants that are trained elsewhere left out."""
        tokens = self.experiment.train.steps * self.experiment.train.batch_tokens
        trained = [name for name, variant in self.experiment.variants().items() if variant.models is None]
        return {
            name: max(1.0, tokens / TokenShards.open(self.directory / "data" / name).num_tokens) for name in trained
        }

    def has(self, purpose: str) -> bool:
        """Whether a run of this purpose is finished."""
        return any((self.directory / "scores" / purpose).glob("*.json"))

    def _make(self, run: Run, bar: Bar) -> list[list[float]]:
        from leyden.study.train import evaluate_models, train_model

        variant = self.experiment.variants()[run.variant]
        note = f"{run.variant}, seed {run.seed}"
        if variant.models is not None:
            found = evaluate_models(variant.models.format(seed=run.seed), self.items)
            bar.advance(1, note)
            return found
        tokenizer = Tokenizer.load(self.directory / "tokenizer")
        shards = TokenShards.open(self.directory / "data" / run.variant)
        if shards.fingerprint != self._data[run.variant]:
            raise UserError(f"{shards.directory} was changed after the study began; begin a new study.")
        settings, place = self.experiment.train, self._run_dir(run)
        return train_model(
            settings, shards, tokenizer, self.items, run.seed, place, lambda share: bar.advance(share, note)
        )

    def _run_dir(self, run: Run) -> Path:
        """Where a run's metrics are kept, and its checkpoints until it is scored."""
        return self.directory / "runs" / run.purpose / f"{run.variant}-{run.seed}"

    def _path(self, run: Run) -> Path:
        return self.directory / "scores" / run.purpose / f"{run.variant}-{run.seed}.json"

    def _write(self, run: Run, log_likelihoods: list[list[float]], plan: str | None) -> None:
        record = {
            "study": self.fingerprint,
            "plan": plan,
            "purpose": run.purpose,
            "variant": run.variant,
            "seed": run.seed,
            "log_likelihoods": log_likelihoods,
        }
        with atomic_file(self._path(run)) as part:
            part.write_text(json.dumps(record), encoding="utf-8")

    def _read(self, run: Run, plan: str | None) -> list[list[float]]:
        path = self._path(run)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"the {run.purpose} run of {run.variant} with seed {run.seed} has no scores; finish the runs first: "
                f"{Launch().command('study', 'data', 'run', self.directory)}"
            ) from None
        except ValueError:
            raise UserError(f"{path} is damaged; remove it and run again.") from None
        made = (record["purpose"], record["variant"], record["seed"])
        if record["study"] != self.fingerprint or made != (run.purpose, run.variant, run.seed):
            raise UserError(f"{path} is of another study; remove it and run again.")
        if record["plan"] != plan:
            raise UserError(
                f"{path} was not made under this plan: results are read by the plan that was written before them and "
                "by no other. Restore that plan, or begin a new study in a new directory."
            )
        return record["log_likelihoods"]


def prepare(experiment: Experiment, directory: Path) -> Study:
    """Begin a study, or find the one in ``directory``.

    Raises:
        UserError: another experiment was begun there, or the documents are too few.
    """
    record_path = directory / "study.json"
    wanted = experiment.model_dump(mode="json")
    if record_path.exists():
        study = Study(directory)
        if study.experiment.model_dump(mode="json") != wanted:
            raise UserError(
                f"{directory} holds a study of other settings (study.json says which); give another --dir, or the "
                "settings as they were."
            )
        return study
    trained = [name for name, variant in experiment.variants().items() if variant.models is None]
    documents, held_out = _documents(experiment, directory) if trained else ([], [])
    items = _items(experiment, held_out)
    write_items(items, directory / "items.jsonl")
    data = {name: f"models {variant.models}" for name, variant in experiment.variants().items() if variant.models}
    if trained:
        data |= _tokenise(experiment, trained, documents, frozenset(held_out), directory)
    discard(directory / _BUILDS)
    record = {"experiment": wanted, "items": items_fingerprint(items), "data": data}
    with atomic_file(record_path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return Study(directory)


def fingerprint(record: Any) -> str:
    """A hash of a JSON value."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _tokenise(
    experiment: Experiment, names: list[str], documents: list[Document], held_out: frozenset[str], directory: Path
) -> dict[str, str]:
    """Train the tokenizer and write every variant's tokens; their fingerprints by name."""
    experiment.train.model_config_of(experiment.data.vocab_size)  # refused now rather than after the tokens
    tokenizer = Tokenizer.train((d.text for d in documents), vocab_size=experiment.data.vocab_size)
    tokenizer.save(directory / "tokenizer")
    found = {}
    for name in names:
        place = directory / _BUILDS / name
        made = _variant(experiment, experiment.variants()[name], documents, held_out, place)
        found[name] = write_shards(made, tokenizer, directory / "data" / name).fingerprint
    return found


def _documents(experiment: Experiment, directory: Path) -> tuple[list[Document], list[str]]:
    """Documents to train on, at most so many bytes, and the held-out texts; both by content alone."""
    settings = experiment.data
    recipe = text_recipe(settings.text, held_out_fraction=settings.held_out_fraction)
    last = run_build(recipe, directory / _BUILDS / "data").stages()[-1]
    held_out = _by_content(list(documents_of(last, dropped=True)))
    return _at_most(list(documents_of(last)), settings.max_bytes), [document.text for document in held_out]


def _items(experiment: Experiment, held_out: list[str]) -> list[Item]:
    if experiment.items.path is not None:
        return read_items(experiment.items.path)
    return build_items(held_out, experiment.items, seed=_ITEM_SEED)


def _variant(
    experiment: Experiment, variant: Variant, documents: list[Document], held_out: frozenset[str], place: Path
) -> list[Document]:
    """The documents of one variant. Of its own, which are built in ``place``, no more bytes than ``[data]`` allows, and
    none that items are from."""
    if variant.text is not None:
        last = run_build(text_recipe(variant.text, held_out_fraction=None), place).stages()[-1]
        own = [document for document in documents_of(last) if document.text not in held_out]
        documents = _at_most(own, experiment.data.max_bytes)
    ordered = _by_content(documents)
    bad = round(variant.shuffle_words * len(ordered))
    return [
        Document(d.id, shuffle_words(d.text, "planted") if rank < bad else d.text, d.source)
        for rank, d in enumerate(ordered)
    ]


def _by_content(documents: Sequence[Document]) -> list[Document]:
    return sorted(documents, key=lambda d: hashlib.blake2b(d.text.encode(), digest_size=16).digest())


def _at_most(documents: Sequence[Document], max_bytes: int | None) -> list[Document]:
    kept, size = [], 0
    for document in _by_content(documents):
        size += len(document.text.encode())
        if max_bytes is not None and kept and size > max_bytes:
            break
        kept.append(document)
    return kept
