"""``leyden run RECIPE --from DIR@STEP --dir NEW``: a run that begins where another was at a step.

It takes over the weights, the optimizer, the counters, the generators, the tokenizer and the metrics so far; and the
place in the data, where the data of the stage is the same. By the recipe of the other run it is that run gone on with,
bit for bit.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leyden.checkpoint.pieces import TensorPiece
from leyden.checkpoint.training import check_training, checkpoint_at, fork_training, is_checkpoint, read_values
from leyden.core.errors import UserError
from leyden.core.files import atomic_directory, atomic_file, link_or_copy
from leyden.core.log import say
from leyden.data.builds.tokens import read_tokens
from leyden.model import HybridLM
from leyden.recipes.batches import make_batches
from leyden.recipes.prepare import FORK_FILE, TOKENIZER_DIRECTORY, TOKENS_DIRECTORY, Prepared
from leyden.recipes.reference import take_reference
from leyden.recipes.resolve import earlier_recipe, same_documents, settled
from leyden.recipes.rollouts import rollouts_fingerprint
from leyden.recipes.schema import Recipe
from leyden.tokenizer import Tokenizer
from leyden.train import Progress, read_metrics
from leyden.train.observing import EVALUATIONS
from leyden.train.spikes import SPIKES


@dataclass(frozen=True)
class Origin:
    """Where a run begins.

    Attributes:
        directory: of the other run.
        step: of its checkpoint; None: the newest.
    """

    directory: Path
    step: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """``DIR``, ``DIR@STEP``, or the directory of a checkpoint.

        Raises:
            UserError: there is no such run.
        """
        name, at, step = text.rpartition("@")
        path, number = (Path(name), int(step)) if at and step.isdigit() and name else (Path(text), None)
        if number is None and is_checkpoint(path):
            path, number = path.absolute().parent.parent, int(path.name.removeprefix("step_"))
        if not path.is_dir():
            raise UserError(f"--from {text}: {path} does not exist; give the directory of a run, as in DIR@STEP.")
        return cls(path.absolute(), number)

    @classmethod
    def of(cls, directory: Path) -> "Origin | None":
        """Of the run in ``directory``; None where it was not forked."""
        path = directory / FORK_FILE
        if not path.exists():
            return None
        said = json.loads(path.read_text(encoding="utf-8"))
        return cls(Path(said["directory"]), said["step"])

    def __str__(self) -> str:
        return f"{self.directory}@{self.step}" if self.step is not None else str(self.directory)


def check_origin(directory: Path, asked: Origin | None, *, begun: bool) -> Origin | None:
    """Where the run in ``directory`` begins, as it was asked for now or before.

    Raises:
        UserError: a run is there (``begun``) that began elsewhere.
    """
    before = Origin.of(directory)
    if asked is None or before is None:
        if asked is not None and begun:
            raise UserError(f"{directory} holds a run that did not begin at {asked}; give another --dir.")
        return asked or before
    if before.directory != asked.directory or asked.step not in (None, before.step):
        raise UserError(f"{directory} holds a run that began at {before}, not at {asked}; give another --dir.")
    return before


class Fork:
    """A run that is to begin at ``origin``.

    Args:
        origin: where.
        recipe: what is asked for.

    Attributes:
        recipe: with what the other run settled.
        stage: index of the stage it begins in.

    Raises:
        UserError: there is no such checkpoint, it is damaged, it is of a model of another shape, or the stage that it
            is in has fewer steps now than were taken.
    """

    def __init__(self, origin: Origin, recipe: Recipe) -> None:
        source = earlier_recipe(origin.directory, "auto")
        if source is None:
            raise UserError(f"{origin.directory} holds no run; give the directory of one, as in --from DIR@STEP.")
        if recipe.train.lora is not None or source.train.lora is not None:
            raise UserError(
                f"--from goes on with all weights of a checkpoint, and [train.lora] trains additions to a model; begin "
                f"from that instead (model.from = '{origin.directory}'), and leave --from out."
            )
        if recipe.starts_from not in (None, source.starts_from):
            raise UserError(
                f"the weights are those of {origin} (--from), and model.from = '{recipe.starts_from}' names others; "
                "leave one of them out."
            )
        self._source, self._path = source, checkpoint_at(origin.directory, origin.step)
        self._values: dict[str, Any] = read_values(self._path)
        self._origin = Origin(origin.directory, self._values["step"])
        progress = Progress(self._values["step"], self._values["stage"], self._values["stage_step"])
        recipe = settled(recipe, source, progress)
        was = source.stage[progress.stage]
        index = next((i for i, stage in enumerate(recipe.stage) if stage.name == was.name), None)
        self.stage, self._taken = (0, 0) if index is None else (index, progress.stage_step)
        total = recipe.stage[self.stage].total_steps
        if total is not None and total < self._taken:
            raise UserError(
                f"stage '{was.name}' has taken {self._taken} steps at {self._origin}, and is to have {total}; give it "
                "more, or another name for it to begin anew."
            )
        self.recipe = self._with_rope(recipe, progress)
        _check_model(self.recipe, self._path)

    def _with_rope(self, recipe: Recipe, progress: Progress) -> Recipe:
        """``recipe`` with the RoPE base and scaling of the other run at that step, unless a stage that was begun says
        another."""
        begun = recipe.stage[: self.stage + 1] if self._taken else ()
        there = self._source.stage[: progress.stage + 1]
        changes = {}
        for name in ("rope_theta", "rope_scaling"):
            if all(getattr(stage, name) is None for stage in begun):
                said = [value for stage in there if (value := getattr(stage, name)) is not None]
                changes[name] = said[-1] if said else getattr(self._source.model, name)
        return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})

    def take_data(self, directory: Path) -> None:
        """The tokenizer, and the tokens too where they are of the same documents."""
        source = self._origin.directory
        with atomic_file(directory / FORK_FILE) as part:
            part.write_text(
                json.dumps({"directory": str(source), "step": self._origin.step}, indent=1), encoding="utf-8"
            )
        self._tokenizer().save(directory / TOKENIZER_DIRECTORY)
        tokens = source / TOKENS_DIRECTORY
        if same_documents(self.recipe, self._source) and tokens.exists() and not (directory / tokens.name).exists():
            for name in ("data.json", "held_out.jsonl", "SHA256SUMS"):
                if (source / name).exists():
                    with atomic_file(directory / name) as part:
                        shutil.copyfile(source / name, part)
            with atomic_directory(directory / tokens.name) as part:
                shutil.copytree(tokens, part, copy_function=link_or_copy, dirs_exist_ok=True)

    def take_state(self, recipe: Recipe, prepared: Prepared, directory: Path) -> None:
        """The checkpoint and the metrics, once ``directory`` has its tokens; from here on it is a run of its own.

        Raises:
            UserError: the tokens are of another tokenizer.
        """
        if prepared.tokenizer.fingerprint != self._tokenizer().fingerprint:
            raise UserError(
                f"the model of {self._origin} reads the tokens of another tokenizer than the data of this recipe has; "
                "take data that was tokenised by the same one."
            )
        values, where = self._values, f"stage '{recipe.stage[self.stage].name}'"
        same = values["batches"]["fingerprint"] == self._fingerprint(recipe, prepared)
        kept = values["batches"] if same and self._taken else None
        place = "which begins" if not self._taken else f"step {self._taken} of it"
        data = "" if kept or not self._taken else "; its data is another, or packed otherwise, and begins anew"
        say(f"forked from {self._origin}: {where}, {place}{data}")
        # Of the spikes so many as the checkpoint has counted are left by whoever goes on.
        for name in ("metrics.jsonl", EVALUATIONS, SPIKES):
            lines = [line for line in read_metrics(self._origin.directory / name) if "step" in line]
            if lines:
                lines = [line for line in lines if name == SPIKES or line["step"] <= values["step"]]
                with atomic_file(directory / name) as part:
                    part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        if kept:
            take_reference(self._origin.directory, directory, recipe.stage[self.stage])
        position = {"stage": self.stage, "stage_step": self._taken, "batches": kept}
        fork_training(self._path, directory, values | position)

    def _fingerprint(self, recipe: Recipe, prepared: Prepared) -> str:
        """Of the batches of the stage that the run begins in."""
        if recipe.stage[self.stage].rl is not None:
            return rollouts_fingerprint(recipe, self.stage, prepared.tokenizer)
        return make_batches(recipe, self.stage, prepared).fingerprint

    def _tokenizer(self) -> Tokenizer:
        own = self._origin.directory / TOKENIZER_DIRECTORY
        if not own.exists() and self._source.data.build is not None:  # by a version that left it with the build
            own = read_tokens(self._source.data.build).tokenizer
        return Tokenizer.load(own)


def _check_model(recipe: Recipe, path: Path) -> None:
    """Refuse a model of another shape than the checkpoint has."""
    with torch.device("meta"):
        shapes = {name: tuple(weight.shape) for name, weight in HybridLM(recipe.model).named_parameters()}
        pieces = {
            f"{kind}.{name}": TensorPiece.whole(torch.empty(shape, dtype=torch.float32))
            for kind in ("master", "exp_avg", "exp_avg_sq")
            for name, shape in shapes.items()
        }
    beside = tuple(f"{name}." for name in read_values(path).get("beside", {}))
    check_training(path, pieces, only=lambda name: not name.startswith(beside))
