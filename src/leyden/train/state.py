"""The state of a run: what a checkpoint holds and a resumed run starts from."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch

from leyden.checkpoint.background import Background
from leyden.checkpoint.coordinator import coordinator_of
from leyden.checkpoint.pieces import TensorPiece
from leyden.checkpoint.starting_model import StartingModel
from leyden.checkpoint.training import (
    Values,
    latest_training,
    load_training,
    newest_values,
    read_values,
    save_training,
)
from leyden.checkpoint.weights_hash import weights_hash
from leyden.core.errors import UserError
from leyden.model.lora import LoraConfig
from leyden.parallel import RankGroup, Weights
from leyden.train.beside import Beside
from leyden.train.generators import random_state, set_random_state
from leyden.train.model import PipelinedModel, TrainableModel
from leyden.train.optimizer import MasterAdamW


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: optimizer steps taken in the whole run.
        stage: index of the stage it is in.
        stage_step: how many of that stage's steps are behind it.
    """

    step: int
    stage: int
    stage_step: int

    @classmethod
    def of(cls, run_dir: Path) -> "Progress | None":
        """By the newest checkpoint of ``run_dir``; None where there is none."""
        values = newest_values(run_dir)
        return None if values is None else cls(values["step"], values["stage"], values["stage_step"])


class Batches(Protocol):
    """An endless iterator over micro-batches that can say where it is, in JSON values, and go there."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


class Kept(Protocol):
    """What a run measures of itself, and goes on from when it is resumed."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


KeptPart = TypeVar("KeptPart", bound=Kept)


class TrainState:
    """The model, its optimizer, the place in the data, the counters and the random-number generators.

    Attributes:
        step: optimizer steps taken in the whole run.
        tokens: positions computed in the whole run.
        stage: index of the stage the run is in.
        stage_step: how many of the stage's steps are behind it: the optimizer steps taken in it, of which one that a
            critical batch makes k times as large counts as k.
        skipped_in_a_row: how many of the latest steps left the weights unchanged because they were not finite.
        rank_group: the ranks that take every step together.
        frozen: what this rank holds of the weights that are not trained; empty where all are.
        lora: of what is trained in their place; None where all weights are.
        began_from: the model that the run began from, as :meth:`StartingModel.record` says it; None: initial weights.

    Args:
        model, optimizer, rank_group: as above; by default one process.
        async_checkpoint: go on training while a checkpoint is written from a copy.
        frozen: the weights that are not trained, which no checkpoint has; None: there are none.
        in_8_bits: those of them that are integers and scales.
        lora: see above.
    """

    def __init__(
        self,
        model: TrainableModel,
        optimizer: MasterAdamW,
        rank_group: RankGroup | None = None,
        *,
        async_checkpoint: bool = False,
        frozen: Weights | None = None,
        in_8_bits: Mapping[str, TensorPiece] | None = None,
        lora: LoraConfig | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.rank_group = rank_group or RankGroup()
        self.step = self.tokens = 0
        self.stage = self.stage_step = 0
        self.skipped_in_a_row = 0
        self.began_from: dict[str, Any] | None = None
        self.frozen_weights, self.lora = frozen or Weights({}), lora
        pieces = {name: TensorPiece(weight.local, weight.part) for name, weight in self.frozen_weights.items()}
        self.frozen = pieces | dict(in_8_bits or {})
        self._batches: Batches | None = None
        self._resumed_batches: dict[str, Any] | None = None
        self._beside: dict[str, Beside] = {}
        self._resumed_from: Path | None = None
        self._kept: dict[str, Kept] = {}
        self._resumed_kept: dict[str, Any] = {}
        self._background = Background() if async_checkpoint else None

    @property
    def pipeline(self) -> PipelinedModel | None:
        """The model, where its layers are divided over pipeline ranks; else None."""
        return cast("PipelinedModel", self.model) if self.rank_group.pipelined else None

    def enter_stage(self, stage: int, batches: Batches) -> None:
        """Go on in ``stage`` where the run stopped in it (``batches`` are moved there), or begin it."""
        if stage != self.stage:
            self.stage, self.stage_step = stage, 0
        elif self._resumed_batches is not None:
            batches.load_state_dict(self._resumed_batches)
        self._resumed_batches = None
        self._batches = batches

    def keep(self, name: str, make: Callable[[], KeptPart]) -> KeptPart:
        """What is saved under ``name`` with every checkpoint; made the first time that it is asked for.

        It then goes on from the checkpoint that was resumed, if that has it.
        """
        if name not in self._kept:
            self._kept[name] = make()
            if name in self._resumed_kept:
                self._kept[name].load_state_dict(self._resumed_kept[name])
        return cast("KeptPart", self._kept[name])

    def join(self, name: str, other: "TrainState", begin: Callable[[], None], *, goes_on: bool) -> None:
        """Have ``other``, which is trained beside this one, in every checkpoint from now on, until it leaves.

        All ranks of the group call this.

        Args:
            name: of its part of a checkpoint.
            other: with weights of its own and the same ranks; its steps are counted as those of this state.
            begin: gives it the weights that it begins with; it is called now, or when this state goes back to a
                checkpoint without it.
            goes_on: it is taken from the checkpoint that this state was resumed from, in place of that.

        Raises:
            UserError: that checkpoint does not have it, or has one of another shape.
        """
        beside = self._beside[name] = Beside(name, other, begin)
        if not goes_on:
            beside.begin_anew(self.step)
            return
        assert self._resumed_from is not None, "what goes on was resumed"
        if name not in read_values(self._resumed_from).get("beside", {}):
            raise UserError(
                f"{self._resumed_from} has no {name}, which is trained beside the model from the beginning of its "
                "stage; go on with the recipe that wrote it, or give the stage another name to begin it anew."
            )
        saved = load_training(
            self._resumed_from, beside.pieces(), coordinator_of(self.rank_group.mesh), only=beside.has
        )
        beside.take(saved.run)

    def leave(self, name: str) -> None:
        """End what :meth:`join` began."""
        del self._beside[name]

    def count(self, tokens: int, *, skipped: bool, stage_steps: int = 1) -> None:
        """Count one optimizer step over ``tokens`` positions, which stands for ``stage_steps`` of its stage."""
        self.step += 1
        self.stage_step += stage_steps
        self.tokens += tokens
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def save(self, run_dir: Path, *, keep: int) -> None:
        """Write a checkpoint, then remove all but the newest ``keep``; with ``async_checkpoint``, begin to.

        All ranks of the group call this, and whatever it raises it raises on all of them.

        Raises:
            UserError: the disk is full (with ``async_checkpoint``: was, at the save before); older checkpoints are
                untouched.
        """
        step, values, coordinator = (
            self.step,
            Values(self._values(), random_state()),
            coordinator_of(self.rank_group.mesh),
        )

        def write(pieces: Mapping[str, TensorPiece]) -> None:
            save_training(run_dir, step, pieces, values, keep=keep, coordinator=coordinator)

        if self._background is None:
            write(self._pieces())
        else:
            self._background.start(self._pieces(), write)

    def check_saving(self) -> None:
        """Raise what a save in the background has failed at, if it has on any rank; all ranks call this once a step.

        Raises:
            UserError: the disk is full.
        """
        if self._background is None or not self._background.pending:
            return
        flags = torch.tensor([self._background.running, self._background.failed])
        running, failed = self.rank_group.sum([flags.double()])[0].tolist()
        if failed or not running:
            self._background.wait()

    def finish_saving(self) -> None:
        """Wait until everything that was saved is on the disk.

        Raises:
            UserError: the disk is full.
        """
        if self._background is not None:
            self._background.wait()

    def resume(self, run_dir: Path) -> bool:
        """Take over the newest complete checkpoint of ``run_dir``; False where there is none.

        It may have been written under another plan, or by a model that computes in another dtype.

        Raises:
            UserError: it belongs to a model of another shape.
        """
        coordinator = coordinator_of(self.rank_group.mesh)
        path = latest_training(run_dir, coordinator)
        if path is None:
            return False
        there = read_values(path).get("beside", {})
        joined = {name: beside for name, beside in self._beside.items() if name in there}
        away = tuple(f"{name}." for name in there if name not in joined)
        pieces = self.own_pieces() | {name: piece for one in joined.values() for name, piece in one.pieces().items()}
        saved = load_training(path, pieces, coordinator, only=lambda name: not name.startswith(away))
        self._resumed_from = path
        self.optimizer.round_into_model()
        values = saved.run
        self.step, self.tokens = values["step"], values["tokens"]
        self.stage, self.stage_step = values["stage"], values["stage_step"]
        self.skipped_in_a_row = values["skipped_in_a_row"]
        self.optimizer.num_steps = values["optimizer_steps"]
        self._resumed_batches = values["batches"]
        self.began_from = values.get("began_from")
        self._resumed_kept = values.get("kept", {})
        if saved.rank is not None:
            set_random_state(saved.rank)
        for name, beside in self._beside.items():
            if name in joined:
                beside.take(values)
            else:
                beside.begin_anew(self.step)
        return True

    def rewind(self, run_dir: Path) -> bool:
        """Go back to the newest complete checkpoint of ``run_dir``, but for the place in the data and what is kept.

        All ranks of the group call this.

        Returns:
            False where there is no checkpoint; nothing has changed then.
        """
        self.finish_saving()
        stage = self.stage
        if not self.resume(run_dir):
            return False
        self._resumed_batches, self._resumed_kept = None, {}
        if self.stage != stage:  # it was written at the end of the stage before
            self.stage, self.stage_step = stage, 0
        return True

    def begin_from(self, start: StartingModel) -> None:
        """Take over the weights of a model; the optimizer and the counters stay at their beginning.

        All ranks of the group call this, and none ever holds the whole model.

        Raises:
            UserError: they are of other shapes, or damaged.
        """
        if self.frozen:
            start.fill(self.frozen, self.rank_group.mesh)
        else:
            weights, masters = self.optimizer.weights, self.optimizer.masters()
            start.fill({name: TensorPiece(m, weights[name].part) for name, m in masters.items()}, self.rank_group.mesh)
            self.optimizer.round_into_model()
        self.began_from = coordinator_of(self.rank_group.mesh).on_rank_0(start.record)

    def go_on_from(self, start: StartingModel | None) -> None:
        """Take over, once the state was resumed, the weights that are not trained from the model that the run began
        from.

        All ranks of the group call this.

        Raises:
            UserError: that model is not there, or has other weights by now.
        """
        if not self.frozen:
            return
        began = self.began_from or {}
        now = None if start is None else replace(start, known=None)
        found = coordinator_of(self.rank_group.mesh).on_rank_0(lambda: None if now is None else now.fingerprint)
        if start is None or found != began.get("fingerprint"):
            raise UserError(
                f"the checkpoint holds the adapters of {began.get('directory', 'a model')} alone, and "
                f"{'that is not named' if start is None else f'{start.directory} has other weights now'}; bring that "
                "model back to what it was."
            )
        start.fill(self.frozen, self.rank_group.mesh)

    def model_hash(self) -> str:
        """What tells this model from others, whatever the plan: its weights, its shape, and what it computes in.

        Weights that are not trained count by the fingerprint of the model that they were read from.

        All ranks of the group call this. It reads all weights once: some 50 million a second and rank on a CPU.
        """
        self.rank_group.at("the hash of the model", self.step)
        weights = self.optimizer.weights
        masters = {name: TensorPiece(master, weights[name].part) for name, master in self.optimizer.masters().items()}
        dtypes = sorted({str(weight.parameter.dtype) for weight in weights.values()})
        config = json.dumps(self.model.config.model_dump(mode="json"), sort_keys=True)
        found = weights_hash(masters, coordinator_of(self.rank_group.mesh))
        base = f" {(self.began_from or {}).get('fingerprint')}" if self.frozen else ""
        return hashlib.sha256(f"{config} {dtypes} {found}{base}".encode()).hexdigest()[:32]

    def _tensors(self) -> dict[str, torch.Tensor]:
        """By name, the tensors themselves: loading writes into them.

        The float32 weights, and not what they are rounded to: that follows.
        """
        masters = {f"master.{name}": tensor for name, tensor in self.optimizer.masters().items()}
        return masters | self.optimizer.tensors()

    def _pieces(self) -> dict[str, TensorPiece]:
        """What a checkpoint has: this state's own pieces and those of what is trained beside it."""
        return self.own_pieces() | {
            name: piece for one in self._beside.values() for name, piece in one.pieces().items()
        }

    def own_pieces(self) -> dict[str, TensorPiece]:
        """Its tensors for a checkpoint, each with its place in the whole: that of the weight it belongs to."""
        weights = self.optimizer.weights
        return {name: TensorPiece(t, weights[name.partition(".")[2]].part) for name, t in self._tensors().items()}

    def _values(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "tokens": self.tokens,
            "stage": self.stage,
            "stage_step": self.stage_step,
            "skipped_in_a_row": self.skipped_in_a_row,
            "optimizer_steps": self.optimizer.num_steps,
            "model": self.model.config.model_dump(mode="json"),
            "began_from": self.began_from,
            "batches": None if self._batches is None else self._batches.state_dict(),
            "kept": {name: kept.state_dict() for name, kept in self._kept.items()},
            **({"beside": {name: one.values() for name, one in self._beside.items()}} if self._beside else {}),
        }
