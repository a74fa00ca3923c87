"""The wiring of a run: model, optimizer, batches, learning rate and loop, for recipes, studies and alignment alike.

A caller says what is to be trained as one :class:`RunSettings` and a list of :class:`StageRun`, makes the state by
:func:`build_state`, and hands all of it to :func:`train_stages`.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from leyden import parallel
from leyden.checkpoint.adapter import write_adapter
from leyden.checkpoint.coordinator import coordinator_of
from leyden.checkpoint.export import export
from leyden.checkpoint.layouts import layout_to_share
from leyden.checkpoint.model_place import refuse_to_replace_others
from leyden.checkpoint.pieces import TensorPiece, gather_whole
from leyden.checkpoint.starting_model import StartingModel
from leyden.core.config import Config
from leyden.core.device import compute_dtype, default_device, matmul_flops_per_second
from leyden.core.errors import UserError
from leyden.core.log import progress, say
from leyden.model import HybridLM, ModelConfig, Rope, RopeScaling, count_model
from leyden.model.fp8 import use_fp8
from leyden.model.lora import LoraConfig
from leyden.parallel import ParallelConfig, RankGroup, Weights
from leyden.parallel.objective import Objective
from leyden.parallel.recompute import install_compile, install_recompute
from leyden.tokenizer import Tokenizer
from leyden.train.adapted import adapted_state
from leyden.train.batch_schedule import MicroBatches, one_batch
from leyden.train.fp8 import fp8_problem
from leyden.train.health import BatchFacts
from leyden.train.held_out import HeldOut, measure
from leyden.train.learning_rate import LearningRate
from leyden.train.loop import fit
from leyden.train.mup import MupConfig, check_mup, mup_rates, scale_initial_weights
from leyden.train.observing import StepFacts, Watcher, no_facts
from leyden.train.optimizer import AdamWConfig, MasterAdamW
from leyden.train.sinks import Sink, SinkName, open_sinks
from leyden.train.spikes import SpikeSettings
from leyden.train.state import Batches, TrainState
from leyden.train.steps import Callback, FitSettings, no_mtp, steps

_WARM_STEPS, _TIMED_STEPS = 3, 5


class RunSettings(Config):
    """What all stages of a run share: the ``[train]`` section of a recipe."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the matrices; ``auto`` takes bfloat16 where the machine multiplies faster in it. Masters are float32."""
    fp8: Literal["none", "blocks"] = "none"
    """``blocks``: products of linear layers and experts are of 8-bit floats, with a scale for each block of a weight
    and each 128 numbers of an activation or gradient, as DeepSeek-V3 trains (:mod:`leyden.model.fp8`)."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights and of the order of the documents."""
    checkpoint_steps: int = Field(default=200, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    async_checkpoint: bool = False
    """Train on while a checkpoint is written from a copy in host memory, which takes 12 bytes a weight."""
    clip_norm: float = Field(default=1.0, gt=0)
    max_skipped_steps: int = Field(default=10, ge=1)
    noise_scale_steps: int = Field(default=0, ge=0)
    """The gradient noise scale is measured every so many steps; 0: never."""
    optimizer: AdamWConfig = AdamWConfig()
    spikes: SpikeSettings = SpikeSettings()
    mup: MupConfig | None = None
    """A table: learning rates and initial weights are those of muP, for a rate found at another width."""
    lora: LoraConfig | None = None
    """A table: train low-rank additions to the model that the run begins from, and leave that as it is. None: train all
    weights."""
    sinks: tuple[SinkName, ...] = ()
    """What else gets the metrics of every step: ``tensorboard``, ``wandb``."""

    def settled(self, of_model: torch.dtype | None = None) -> "RunSettings":
        """With a dtype in place of ``auto``; which one, and why, is said.

        Args:
            of_model: that of the model that the run begins from: one in float32 stays in float32.
        """
        if self.dtype != "auto":
            return self
        dtype, reason = torch.float32, "float32, as the model that the run begins from"
        if of_model != torch.float32:
            dtype, reason = compute_dtype(default_device())
        say(f"computing in {reason}")
        return self.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})


@dataclass(frozen=True)
class StageRun:
    """One stage of a run, with all that its training needs.

    Attributes:
        name: for the metrics and the progress bar.
        objective: what is minimised.
        learning_rate: over the steps of the stage.
        steps: how many optimizer steps it has.
        seq_len: tokens of a sequence, for the count of floating-point operations.
        begin: called on every rank when the stage begins or is gone on with, before anything is opened of it: for what
            it needs of the model that it begins with. The state is left as it was.
        batches: opens this rank's micro-batches, at their beginning; they are closed at the end of the stage.
        micro_batches: how many of them each optimizer step takes.
        max_batch_factor: how many times as many it may take where the critical batch allows it; 1: it never grows.
        mtp_weight: of the losses of modules for multi-token prediction, by the step of the stage.
        rope_theta, rope_scaling: the RoPE base and its scaling from this stage on; None keeps what was.
        held_out: makes this rank's share of what the loss is measured on now and then; it may give None.
        after_step, callbacks: called after every step, as :func:`leyden.train.loop.fit` says.
        watchers: what measures the model now and then.
        batch_facts: what is to be noted of the batches of a spike.
        step_facts: what the batches have to say of each step.
        shows_progress: whether there is a progress bar of the stage.
    """

    name: str
    objective: Objective
    learning_rate: LearningRate
    steps: int
    seq_len: int
    batches: Callable[[], AbstractContextManager[Batches]]
    begin: Callable[[TrainState], None] = lambda _: None
    micro_batches: MicroBatches = one_batch
    max_batch_factor: int = 1
    mtp_weight: Callable[[int], float] = no_mtp
    rope_theta: float | None = None
    rope_scaling: RopeScaling | None = None
    held_out: Callable[[], HeldOut | None] = lambda: None
    after_step: Sequence[Callback] = ()
    callbacks: Sequence[Callback] = ()
    watchers: Sequence[Watcher] = ()
    batch_facts: BatchFacts | None = None
    step_facts: StepFacts = no_facts
    shows_progress: bool = True

    def rope_after(self, rope: Rope) -> Rope:
        """What becomes of ``rope`` when the stage begins."""
        theta, scaling = self.rope_theta, self.rope_scaling
        return Rope(rope.theta if theta is None else theta, rope.scaling if scaling is None else scaling)


def build_state(
    config: ModelConfig,
    settings: RunSettings,
    *,
    row_tokens: int,
    rank_group: RankGroup | None = None,
    parallel_config: ParallelConfig | None = None,
) -> TrainState:
    """A model with its initial weights, the same ones whatever the plan, and its optimizer.

    Args:
        config: of the whole model.
        settings: with a dtype other than ``auto``.
        row_tokens: of the longest sequence; pipeline stages are dealt so that they cost alike at this length.
        rank_group: the ranks, all of which call this; None: one process.
        parallel_config: how memory is saved, which a run of one process can do too.
    """
    rank_group, how = rank_group or RankGroup(), parallel_config or ParallelConfig()
    torch.manual_seed(settings.seed)
    dtype = getattr(torch, settings.dtype)
    if settings.mup is not None:
        check_mup(config, adapters=settings.lora is not None)
    if settings.fp8 != "none" and (problem := fp8_problem(how, adapters=settings.lora is not None)):
        raise UserError(f"{problem}.")
    if settings.lora is not None:
        return adapted_state(
            config,
            settings.lora,
            dtype,
            settings.optimizer,
            seed=settings.seed,
            row_tokens=row_tokens,
            rank_group=rank_group,
            how=how,
            async_checkpoint=settings.async_checkpoint,
        )
    host = torch.device("cpu") if how.offload_optimizer else None
    if rank_group.mesh is None:
        model = _computing(HybridLM(config, seed=settings.seed), settings).to(default_device())
        if how.compile:
            install_compile(model, default_device())
        install_recompute(model, how.activation_checkpointing)
        optimizer = _optimizer(Weights.alone(model), settings, host, config)
        model.to(dtype)  # now, so that the masters begin unrounded, as those of many ranks do
        return TrainState(model, optimizer, rank_group, async_checkpoint=settings.async_checkpoint)
    with torch.device("meta"):
        whole = _computing(HybridLM(config), settings)
    if host is not None:
        whole.to(dtype)  # the masters are elsewhere
    attached = parallel.attach(whole, rank_group.mesh, dtype, seed=settings.seed, row_tokens=row_tokens)
    optimizer = _optimizer(attached.weights, settings, host, config)
    return TrainState(attached.model, optimizer, rank_group, async_checkpoint=settings.async_checkpoint)


def _computing(model: HybridLM, settings: RunSettings) -> HybridLM:
    """The model with the products that the settings ask for."""
    if settings.fp8 == "blocks":
        use_fp8(model)
    return model


def _optimizer(weights: Weights, settings: RunSettings, host: torch.device | None, config: ModelConfig) -> MasterAdamW:
    """Of initial weights, which muP scales."""
    if settings.mup is None:
        return MasterAdamW(weights, settings.optimizer, host, config)
    shapes = {name: weight.part.shape for name, weight in weights.items()}
    rates = mup_rates(config, shapes, settings.mup, settings.optimizer.muon)
    optimizer = MasterAdamW(weights, settings.optimizer, host, config, rates)
    scale_initial_weights(optimizer, config, settings.mup)
    return optimizer


def train_stages(
    state: TrainState,
    stages: Sequence[StageRun],
    settings: RunSettings,
    run_dir: Path,
    *,
    how_to_resume: str,
    start: StartingModel | None = None,
    described: Mapping[str, Any] | None = None,
) -> None:
    """Train through all stages, from the newest checkpoint in ``run_dir`` if there is one.

    Args:
        state: as :func:`build_state` gave it; all ranks of its group call this.
        stages: in order; those that the checkpoint has behind it are passed over.
        settings: as given to :func:`build_state`.
        run_dir: gets ``metrics.jsonl`` and ``checkpoints/``.
        how_to_resume: what an interrupted user is told.
        start: a model whose weights the run begins with; None: the initial ones. A run that has a checkpoint goes on
            from that, and does not look at this.
        described: the run as JSON values, for what else gets its metrics.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; all is saved.
        UserError: the disk is full, the data ends early, the loss stays not finite, or ``start`` does not fit.
    """
    if state.resume(run_dir):
        state.go_on_from(start)
        say(f"going on from step {state.step}")
    elif start is not None:
        state.begin_from(start)
    if settings.lora is not None and state.rank_group.rank == 0:
        trained = sum(torch.Size(weight.part.shape).numel() for weight in state.optimizer.weights.values())
        say(f"training {trained:,} weights of adapters (rank {settings.lora.rank}); the model itself stays as it is")
    names = settings.sinks if state.rank_group.rank == 0 else ()
    with open_sinks(names, run_dir, state.step, described or {}) as sinks:
        for index, stage in enumerate(stages):
            rope = stage.rope_after(state.model.config.rope)
            if rope != state.model.config.rope:
                state.model.set_rope(rope)
            if index >= state.stage:
                _train_stage(state, stage, settings, run_dir, how_to_resume, index, sinks)


def _train_stage(
    state: TrainState,
    stage: StageRun,
    settings: RunSettings,
    run_dir: Path,
    how_to_resume: str,
    index: int,
    sinks: Sequence[Sink],
) -> None:
    stage.begin(state)
    held_out = stage.held_out()
    with stage.batches() as batches:
        fit(
            state,
            batches,
            stage.objective,
            stage.learning_rate,
            _fit_settings(state, stage, settings, how_to_resume),
            run_dir=run_dir,
            stage=index,
            held_out=held_out,
            sinks=sinks,
            after_step=stage.after_step,
            callbacks=stage.callbacks,
            watchers=stage.watchers,
            batch_facts=stage.batch_facts,
            step_facts=stage.step_facts,
        )


def time_steps(state: TrainState, stage: StageRun, settings: RunSettings) -> tuple[float, float]:
    """Time some optimizer steps of ``stage``, and a measurement on its held-out documents.

    Args:
        state: takes some steps, and is of no use afterwards. All ranks of its group call this, and each has a clock of
            its own.
        stage: whose ``steps`` are not looked at.
        settings: as given to :func:`build_state`.

    Returns:
        Seconds of a step, and what the measurements between steps add to each.
    """
    timed = _fit_settings(state, stage, settings, "").model_copy(update={"total_steps": _WARM_STEPS + _TIMED_STEPS})
    held_out, held_out_seconds = stage.held_out(), 0.0
    seconds = []
    with stage.batches() as batches, progress(f"timing {stage.name}", timed.total_steps, "steps") as bar:
        taken = steps(state, batches, stage.objective, stage.learning_rate, timed, after_step=stage.after_step)
        for step in taken:
            seconds.append(step.seconds)
            bar.advance()
        if held_out is not None:
            started = time.perf_counter()
            measure(state, held_out, stage.objective)
            held_out_seconds = (time.perf_counter() - started) / held_out.every_steps
    return statistics.median(seconds[_WARM_STEPS:]), held_out_seconds


def _fit_settings(state: TrainState, stage: StageRun, settings: RunSettings, how_to_resume: str) -> FitSettings:
    world = 1 if state.rank_group.mesh is None else state.rank_group.mesh.plan.world
    rate = matmul_flops_per_second(getattr(torch, settings.dtype), default_device().type)
    return FitSettings(
        stage=stage.name,
        total_steps=stage.steps,
        micro_batches=stage.micro_batches,
        max_batch_factor=stage.max_batch_factor,
        mtp_weight=stage.mtp_weight,
        clip_norm=settings.clip_norm,
        checkpoint_steps=settings.checkpoint_steps,
        keep_checkpoints=settings.keep_checkpoints,
        max_skipped_steps=settings.max_skipped_steps,
        noise_scale_steps=settings.noise_scale_steps,
        spikes=settings.spikes,
        flops_per_token=count_model(state.model.config).training_flops_per_token(stage.seq_len),
        peak_flops_per_second=world * rate,
        how_to_resume=how_to_resume,
        shows_progress=stage.shows_progress,
    )


def save_trained(state: TrainState, tokenizer: Tokenizer, path: Path, lora: LoraConfig | None = None) -> None:
    """Write the model in float32, the optimizer's masters: what was learnt, before it was rounded to compute.

    Of a run that trains adapters (``lora``), these alone are written, in PEFT's layout.

    The layout is that of transformers, or ours where that one cannot express the model, and a line says why.
    All ranks of the group call this, and none ever holds the whole model.
    """
    optimizer = state.optimizer
    learnt = {name: TensorPiece(master, optimizer.weights[name].part) for name, master in optimizer.masters().items()}
    config, rank_group = state.model.config, state.rank_group
    if lora is not None:
        base, coordinator = state.began_from or {}, coordinator_of(rank_group.mesh)
        counted = {name: piece for name, piece in learnt.items() if optimizer.weights[name].counted}
        whole = gather_whole(counted, coordinator)
        how = {"rank": lora.rank, "alpha": lora.alpha, "tokenizer": tokenizer}
        origin = {"base": base["directory"], "fingerprint": base["fingerprint"]}
        coordinator.on_rank_0(lambda: refuse_to_replace_others(path))
        coordinator.on_rank_0(lambda: write_adapter(whole, config, path, **how, **origin))
        return
    layout, reason = layout_to_share(config, torch.float32, tokenizer)
    if reason and rank_group.rank == 0:
        say(f"the model is saved in the leyden layout: {reason}")
    export(learnt, config, tokenizer, path, layout=layout, mesh=rank_group.mesh)
