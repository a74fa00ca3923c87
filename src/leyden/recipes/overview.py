"""The stages of a recipe as a table: what ``leyden run RECIPE --dry-run`` shows before the recipe itself."""

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from leyden.core.quantities import count_text
from leyden.data.loader.mixture_schedule import MixturePoint, MixtureSchedule
from leyden.model import count_model
from leyden.parallel import ParallelConfig, make_plan
from leyden.parallel.mesh import coordinates
from leyden.parallel.planner import StepShape
from leyden.parallel.planner.rank import Rank
from leyden.parallel.planner.time import Machine, predict_time
from leyden.recipes.schema import Recipe, TrainingStage

_COLUMNS = ("stage", "length", "tokens", "steps", "batch", "learning rate", "RoPE base", "mixture", "FLOPs", "days")
_WIDTH = 200
_SECONDS_OF_A_DAY = 86_400


def overview(recipe: Recipe, world: int) -> str:
    """A table of the stages, as comment lines of a TOML file.

    Args:
        recipe: what is to run.
        world: the ranks of ``[parallel]``. Where there are several, days are those that the planner predicts on GPUs
            like the H800, for a plan that divides the steps of every stage.
    """
    table = Table(box=box.SIMPLE_HEAD)
    predicts = world > 1
    for name in _COLUMNS if predicts else _COLUMNS[:-1]:
        table.add_column(name, justify="left" if name in ("stage", "batch", "learning rate", "mixture") else "right")
    base = recipe.model.rope_theta
    flops, days = 0.0, 0.0
    for stage in recipe.stage:
        base = stage.rope_theta or base
        of_stage, takes = _flops(recipe, stage), _days(recipe, stage, world) if predicts else 0.0
        flops, days = flops + of_stage, days + takes
        row = (stage.name, f"{stage.seq_len:,}", _total(stage), _steps(stage), _batch(stage), _rate(stage))
        costs = [_number(of_stage), _number(takes)] if predicts else [_number(of_stage)]
        table.add_row(*row, f"{base:,.0f}", _mixture(stage), *costs)
    if len(recipe.stage) > 1:
        table.add_section()
        tokens = sum(stage.batch_schedule.tokens_before(stage.total_steps or 0) for stage in recipe.stage)
        steps = sum(stage.total_steps or 0 for stage in recipe.stage)
        known = all(stage.total_steps is not None for stage in recipe.stage)
        costs = [_number(flops * known), _number(days * known)] if predicts else [_number(flops * known)]
        sums = (count_text(tokens), f"{steps:,}") if known else ("", "")
        table.add_row("all", "", *sums, "", "", "", "", *costs)
    lines = [line.rstrip() for line in _rendered(table).splitlines() if line.strip()]
    if predicts:
        lines.append(f" Days are the planner's on {world:,} GPUs ({_plan(recipe.parallel)}).")
    return "".join(f"#{line}\n" for line in lines) + "\n"


def _number(cost: float) -> str:
    """Nothing where the number of steps, and so the cost, is not known yet."""
    return f"{cost:.3g}" if cost else ""


def _total(stage: TrainingStage) -> str:
    if stage.total_steps is None:
        return (
            f"{stage.minutes:g} min"
            if stage.minutes is not None
            else f"{stage.epochs:g} epoch{'s' * (stage.epochs != 1)}"
        )
    if stage.rl is not None:
        return ""
    return count_text(stage.batch_schedule.tokens_before(stage.total_steps))


def _steps(stage: TrainingStage) -> str:
    return "" if stage.total_steps is None else f"{stage.total_steps:,}"


def _batch(stage: TrainingStage) -> str:
    if stage.rl is not None:
        return f"{stage.rl.prompts_per_step:,} prompts, {stage.rl.group_size} completions each"
    first, *later = stage.batch_schedule.marks
    lines = [count_text(first[1]), *(f"{count_text(size)} from {count_text(mark)}" for mark, size in later)]
    if stage.batch == "critical":
        lines.append("doubles by the critical batch")
        lines += [f"to {count_text(stage.max_batch_tokens)} at most"] if stage.max_batch_tokens else []
    return "\n".join(lines)


def _rate(stage: TrainingStage) -> str:
    warmup = f"{stage.warmup_steps:,} steps to " if stage.warmup_steps else ""
    lines = [f"{warmup}{stage.lr:g}", *(f"{rate:g} from {count_text(mark)}" for mark, rate in stage.lr_changes)]
    if stage.schedule != "constant":
        peak = stage.lr_changes[-1][1] if stage.lr_changes else stage.lr
        final = peak / 10 if stage.final_lr is None else stage.final_lr
        last = f"{stage.decay_share:.0%}" if stage.decay_tokens is None else count_text(stage.decay_tokens)
        lines.append(f"{stage.schedule} to {final:g} in the last {last}")
    return "\n".join(lines)


def _mixture(stage: TrainingStage) -> str:
    if stage.rl is not None:
        critic = f"\ncritic from {stage.rl.critic.model or 'the policy'}" * (stage.rl.algorithm.baseline == "critic")
        return f"{stage.rl.algorithm.preset}, reward {stage.rl.reward or stage.rl.environment}{critic}"
    mixture = stage.mixture
    if stage.objective == "preference":
        settings = ", ".join(f"{name} {value:g}" for name, value in stage.settings_of_loss.items())
        return f"pairs: {stage.loss_name}, {settings}"
    if mixture is None:
        return "as the data are"
    lines = [f"from the stage before in the first {mixture.transition:.0%}"] if mixture.transition else []
    for point in mixture.point:
        lines.append(f"{_mark(point)}{_shares(point)}")
        if point.lengths is not None:
            lines.append("  " + _classes(mixture, point.lengths))
    lines += [f"{late.share:.0%} {late.source} in the last {late.last:.0%}" for late in mixture.late]
    return "\n".join(lines)


def _mark(point: MixturePoint) -> str:
    if point.share is not None:
        return f"at {point.share:.0%}: "
    if point.tokens:
        return f"at {count_text(point.tokens)}: "
    return f"at step {point.step:,}: " if point.step else ""


def _shares(point: MixturePoint) -> str:
    total = sum(point.weights.values())
    return ", ".join(f"{weight / total:.3g} {name}" for name, weight in point.weights.items() if weight)


def _classes(mixture: MixtureSchedule, shares: Sequence[float]) -> str:
    bounds = [f"to {bound:,}" for bound in mixture.length_bounds] + ["longer"]
    return ", ".join(f"{share:.0%} {bound}" for share, bound in zip(shares, bounds, strict=True))


def _flops(recipe: Recipe, stage: TrainingStage) -> float:
    tokens = stage.batch_schedule.tokens_before(stage.total_steps or 0)
    return tokens * count_model(recipe.model).training_flops_per_token(stage.seq_len)


def _days(recipe: Recipe, stage: TrainingStage, world: int) -> float:
    plan, seconds = make_plan(recipe.parallel, world), 0.0
    for change, steps in stage.batch_schedule.within(stage.total_steps or 0):
        step = StepShape(stage.seq_len, stage.micro_batch, change.batch_tokens // stage.micro_batch)
        seconds += steps * predict_time(Rank(recipe.model, plan, step, coordinates(plan, 0)), Machine()).seconds
    return seconds / _SECONDS_OF_A_DAY


def _plan(config: ParallelConfig) -> str:
    sizes = {name: getattr(config, name) for name in ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep", "etp")}
    return ", ".join(f"{name} {size}" for name, size in sizes.items() if size and size > 1)


def _rendered(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=_WIDTH).print(table)
    return text.getvalue()
