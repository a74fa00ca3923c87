"""``leyden plan`` and ``leyden info --gpus``: what a plan costs, said in words."""

import io
from collections.abc import Sequence

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from leyden.core.config import dump_toml, override
from leyden.core.errors import UserError
from leyden.model import PRESETS, HybridLM, ModelConfig, preset
from leyden.model.lora import INT8_ON_RANKS, LoraConfig, adapter_parameters, add_lora
from leyden.parallel.mesh import coordinates
from leyden.parallel.plan import ParallelConfig, Plan
from leyden.parallel.planner import StepShape, check_plan
from leyden.parallel.planner.bubbles import ChunkSeconds, bubbles
from leyden.parallel.planner.memory import RankMemory, predict_memory
from leyden.parallel.planner.rank import MomentBytes, Rank
from leyden.parallel.planner.search import Candidate, search
from leyden.parallel.planner.time import Machine, StepTime, predict_time
from leyden.parallel.planner.traffic import by_axis, predict_traffic
from leyden.recipes.loader import load_recipe
from leyden.train import AdamWConfig, RunSettings


def plan_text(
    what: str,
    settings: Sequence[str],
    world: int,
    machine: Machine,
    *,
    length: int | None = None,
    batch_tokens: int | None = None,
    micro_batch_tokens: int | None = None,
    best: int = 5,
) -> str:
    """The best plans for ``world`` ranks, as a table and as TOML of the first.

    Args:
        what: a recipe or a preset.
        settings: changes to it, as ``--set`` gives them.
        world: the ranks.
        machine: what a rank has.
        length, batch_tokens, micro_batch_tokens: of a step; those of a recipe's longest stage where None,
            at its last batch size.
        best: how many plans.

    Raises:
        UserError: ``what`` is unknown, or no plan fits.
    """
    model, _, train = read_model(what, settings)
    lora = train.lora
    if lora is not None:
        raise UserError(
            "plans are ranked by the time of a step that trains all weights; leave train.lora out, or give a plan and "
            f"see what it takes: leyden info {what} --gpus {world} --set train.lora.rank={lora.rank} --set parallel..."
        )
    step = step_of(what, settings, world, length, batch_tokens, micro_batch_tokens)
    found = search(model, world, step, machine, best=best, moments=moment_bytes(train.optimizer))
    table = Table(box=box.SIMPLE_HEAD, title=f"{what} on {world:,} ranks, {step.tokens:,} tokens a step")
    for name in ("plan", "recompute", "micro-batches", "GB a rank", "s a step", "MFU", "binds"):
        table.add_column(name, no_wrap=name != "plan", justify="left" if name in ("plan", "recompute") else "right")
    for candidate in found:
        table.add_row(*_row(candidate))
    chosen = found[0]
    section = dump_toml({"parallel": _settings(chosen.plan)})
    first = f"The first of them, with micro_batch_tokens = {chosen.step.micro_batch_tokens:,}:"
    return f"{_rendered(table)}\n{_idle_text(chosen.plan, chosen.step)}{first}\n\n{section}"


def _idle_text(plan: Plan, step: StepShape) -> str:
    """How long the ranks of the plan's pipeline wait, under the schedules that there are; nothing without one."""
    if plan.pp == 1:
        return ""
    again = plan.settings.activation_checkpointing == "full"
    chunk = ChunkSeconds(backward=3.0 if again else 2.0)
    stages = max(2, plan.settings.stages_per_rank)
    lines = [
        f"  {bubble.schedule:<28}{'no formula' if bubble.share is None else f'{bubble.share:.1%}':>10}"
        f"{'' if bubble.runs else '   (Leyden does not run it)'}"
        for bubble in bubbles(plan.pp, step.num_micro_batches, stages, chunk)
    ]
    head = (
        f"A rank of the first plan's pipeline ({plan.pp} ranks, {step.num_micro_batches} micro-batches) waits, beside "
        "the time that it works:"
    )
    return "\n".join([head, "", *lines, "", ""])


def cost_text(
    what: str,
    settings: Sequence[str],
    world: int,
    machine: Machine,
    *,
    length: int | None = None,
    batch_tokens: int | None = None,
    micro_batch_tokens: int | None = None,
) -> str:
    """Memory of a rank and bytes of every axis in a step, under the plan that a recipe or ``--set parallel...`` gives.

    Raises:
        UserError: the plan cannot be; with all that is wrong, and the nearest plans that can be.
    """
    model, parallel, train = read_model(what, settings)
    lora = train.lora
    if lora is not None and lora.int8 and world > 1:
        raise UserError(INT8_ON_RANKS)
    step = step_of(what, settings, world, length, batch_tokens, micro_batch_tokens)
    plan = check_plan(parallel, world, model, step)
    moments = moment_bytes(train.optimizer)
    ranks = [
        Rank(model, plan, step, coordinates(plan, number), lora=lora, moments=moments)
        for number in _one_of_each_stage(plan)
    ]
    memories = [predict_memory(rank) for rank in ranks]
    most = max(range(len(ranks)), key=lambda index: memories[index].peak)
    fits = memories[most].peak <= machine.memory_bytes
    where = f" (pipeline rank {ranks[most].at['pp']}, which needs most)" if plan.pp > 1 else ""
    rows = [("plan", str(plan)), ("tokens a step", f"{step.tokens:,} in {step.num_micro_batches} micro-batches")]
    rows += _memory_rows(memories[most], where, machine, fits)
    if lora is not None:  # what follows is of gradients of all weights
        return _lines(rows + _adapter_rows(model, lora))
    rows += [
        (f"sent over {axis}", f"{_size(n)} a rank and step")
        for axis, n in by_axis(predict_traffic(ranks[most])).items()
    ]
    if train.optimizer.muon is not None and plan.stage > 1:
        held = sum(count * module.matrices for module, count in ranks[most].modules())
        rows.append(("sent by Muon", f"{_size(2 * held * ranks[most].wide.itemsize)} a rank and step, on average"))
    if fits:
        rows += _time_rows(predict_time(ranks[most], machine))
    return _lines(rows)


def _lines(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _adapter_rows(model: ModelConfig, lora: LoraConfig) -> list[tuple[str, str]]:
    with torch.device("meta"):
        adapted = add_lora(HybridLM(model), lora)
    trained = sum(parameter.numel() for parameter in adapter_parameters(adapted).values())
    whole = sum(parameter.numel() for parameter in adapted.parameters()) - trained
    return [
        ("trained", f"{trained:,} weights of adapters: rank {lora.rank} of {', '.join(lora.targets)}"),
        ("frozen", f"{whole:,} weights of the model, without gradients and optimizer state"),
    ]


def moment_bytes(optimizer: AdamWConfig) -> MomentBytes:
    """What an optimizer remembers of a weight: AdamW two moments, Muon a float32 momentum."""
    adam = 2 * getattr(torch, optimizer.moments).itemsize
    return MomentBytes(matrix=adam if optimizer.muon is None else torch.float32.itemsize, other=adam)


def read_model(what: str, settings: Sequence[str]) -> tuple[ModelConfig, ParallelConfig, RunSettings]:
    """The shape, the ``[parallel]`` section and the ``[train]`` section of a preset or a recipe.

    Raises:
        UserError: an unknown name or setting.
    """
    if what not in PRESETS:
        recipe = load_recipe(what, settings)
        return recipe.model, recipe.parallel, recipe.train
    changes = override({"model": {}, "parallel": {}, "train": {}}, settings)
    if set(changes) != {"model", "parallel", "train"} or set(changes["train"]) - {"lora", "optimizer"}:
        raise UserError(
            "--set on a preset changes model.FIELD, parallel.FIELD, train.optimizer.FIELD or train.lora.FIELD; given: "
            f"{', '.join(settings)}."
        )
    return (
        preset(what, **changes["model"]),
        ParallelConfig.parse(changes["parallel"], "--set parallel"),
        RunSettings.parse(changes["train"], "--set train"),
    )


def step_of(
    what: str,
    settings: Sequence[str],
    world: int,
    length: int | None,
    batch_tokens: int | None,
    micro_batch_tokens: int | None,
) -> StepShape:
    """The tokens of a step: as given, else those of the recipe's stage with the longest sequences.

    Of a preset: sequences of 8,192 tokens, one a rank, in one micro-batch.

    Raises:
        UserError: sizes that do not divide each other.
    """
    if what in PRESETS:
        length = length or 8192
        batch = batch_tokens or length * world
        micro = micro_batch_tokens or batch
    else:
        stage = max(load_recipe(what, settings).stage, key=lambda stage: stage.seq_len)
        length, batch = length or stage.seq_len, batch_tokens or stage.batch_schedule.changes[-1].batch_tokens
        micro = micro_batch_tokens or min(batch, max(stage.micro_batch, length))
    if micro % length or batch % micro:
        raise UserError(
            f"a step of {batch:,} tokens in micro-batches of {micro:,} in sequences of {length:,}: each must be a "
            "multiple of the next; change --batch-tokens, --micro-batch-tokens or --length."
        )
    return StepShape(length, micro, batch // micro)


def _one_of_each_stage(plan: Plan) -> list[int]:
    return [stage * plan.stage for stage in range(plan.pp)]


def _memory_rows(memory: RankMemory, where: str, machine: Machine, fits: bool) -> list[tuple[str, str]]:
    verdict = f"{'fits' if fits else 'does not fit'} {_size(machine.memory_bytes)}"
    parts = ", ".join(f"{kind} {_size(n)}" for kind, n in memory.at_peak.items() if n)
    return [("memory a rank", f"{_size(memory.peak)}{where}: {verdict} (--memory)"), ("  of it", parts)]


def _time_rows(time: StepTime) -> list[tuple[str, str]]:
    axes = ", ".join(f"{axis} {seconds:.3g} s" for axis, seconds in time.axis_seconds.items() if seconds >= 1e-3)
    return [
        ("step", f"{time.seconds:.3g} s, {time.mfu:.0%} MFU; {time.binds} binds"),
        ("  of it", f"computing {time.compute_seconds:.3g} s" + (f"; {axes}, hidden or not" if axes else "")),
    ]


def _row(candidate: Candidate) -> tuple[str, ...]:
    plan, time = candidate.plan, candidate.time
    return (
        str(plan),
        plan.settings.activation_checkpointing,
        f"{candidate.step.num_micro_batches:,}",
        f"{candidate.memory.peak / 1e9:.1f}",
        f"{time.seconds:.3g}",
        f"{time.mfu:.0%}",
        time.binds,
    )


def _settings(plan: Plan) -> dict[str, object]:
    """What a recipe must say for this plan, defaults left out."""
    plain, said = ParallelConfig(), plan.settings.model_dump(mode="json")
    sizes = {name: getattr(plan, name) for name in ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep", "etp")}
    return {name: n for name, n in sizes.items() if n > 1} | {
        name: value for name, value in said.items() if name not in sizes and value != getattr(plain, name)
    }


def _rendered(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=120).print(table)
    return text.getvalue()


def _size(num_bytes: float) -> str:
    for scale, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {suffix}"
    return f"{num_bytes:.0f} bytes"
