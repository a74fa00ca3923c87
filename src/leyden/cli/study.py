"""``leyden study``: experiments with a hypothesis, a plan and a verdict."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Experiments that decide something.", no_args_is_help=True)
data = typer.Typer(
    help="Is one data set better than another? A plan, small models, a verdict, and how often it would be wrong.",
    no_args_is_help=True,
)
app.add_typer(data, name="data")

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The study's directory.", show_default=False)]
Alpha = Annotated[float, typer.Option(min=0.0001, max=0.49, help="Level of the test.")]
Power = Annotated[float, typer.Option(min=0.51, max=0.9999, help="Chance to find the effect.")]


GridFile = Annotated[Path, typer.Argument(metavar="GRID.toml", help="The grid's file.", show_default=False)]
StudyDirectory = Annotated[
    Path | None, typer.Option("--dir", help="Where the study is kept; runs/NAME by default.", show_default=False)
]
ExecutorName = Annotated[str, typer.Option("--executor", help="Where its runs are carried out.")]
Retry = Annotated[bool, typer.Option("--retry", help="Run again what failed or diverged.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the grid and list its points; run nothing.")]


def _carry_out(kind: str, grid: Path, directory: Path | None, executor: str, retry: bool, dry_run: bool) -> None:
    from leyden.recipes.studies import Asked, run_study

    place = directory or Path("runs") / grid.stem
    print(run_study(kind, grid, place, Asked(executor, retry, dry_run)))


@app.command()
def scaling(
    grid: GridFile,
    directory: StudyDirectory = None,
    executor: ExecutorName = "local",
    retry: Retry = False,
    dry_run: DryRun = False,
) -> None:
    """Fit power laws of the budget to runs of different sizes at equal operations, and write a report."""
    _carry_out("scaling", grid, directory, executor, retry, dry_run)


@app.command()
def ablation(
    grid: GridFile,
    directory: StudyDirectory = None,
    executor: ExecutorName = "local",
    retry: Retry = False,
    dry_run: DryRun = False,
) -> None:
    """Compare the losses of a grid's points with its first point's, seed by seed, and write a report."""
    _carry_out("ablation", grid, directory, executor, retry, dry_run)


@app.command()
def speed(
    grid: GridFile,
    directory: StudyDirectory = None,
    executor: ExecutorName = "local",
    retry: Retry = False,
    dry_run: DryRun = False,
) -> None:
    """Compare the speed of training by length of the rows, and write a report."""
    _carry_out("speed", grid, directory, executor, retry, dry_run)


@app.command()
def mixture(
    documents: Annotated[list[Path], typer.Argument(help="Parquet files of documents, or folders of such.")],
    directory: Annotated[Path, typer.Option("--dir", help="Gets plan.json, plan.txt and plan.svg.")],
    tokens: Annotated[
        int | None, typer.Option(min=1, help="The budget; as many as there are by default.", show_default=False)
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="A TOML file with settings of the stage 'mixture'.", show_default=False)
    ] = None,
) -> None:
    """What a token budget takes of each source and quality class, and how often it repeats, before any training."""
    from leyden.core.config import read_toml
    from leyden.data.token_budget import PlanMixture, forecast

    given = read_toml(settings) if settings else {}
    if tokens is not None:
        given["tokens"] = tokens
    print(forecast(documents, PlanMixture.parse(given, str(settings or "mixture")), directory).table())


@data.command()
def plan(
    experiment: Annotated[str, typer.Argument(help="A TOML file, or 'demo'.")],
    directory: Annotated[Path, typer.Option("--dir", help="Where the study is kept.")],
) -> None:
    """Run the pilot and write the plan: hypothesis, metric, benchmarks, seeds, what can be found, the rule."""
    from leyden.study.experiment import DEMO, load_experiment
    from leyden.study.plan import make_plan
    from leyden.study.report import tell_plan

    path = DEMO if experiment == "demo" else Path(experiment)
    print(tell_plan(make_plan(load_experiment(path), directory)[1]))


@data.command()
def run(directory: Directory) -> None:
    """Train and score the runs of the plan; Ctrl-C keeps the finished ones, the same command goes on."""
    from leyden.core.launch import Launch
    from leyden.study.verdict import run_plan

    written = run_plan(directory)
    command = Launch().command("study", "data", "verdict", directory)
    print(f"{directory}: {2 * len(written.seeds['baseline'])} runs are scored; to read them: {command}")


@data.command()
def verdict(directory: Directory) -> None:
    """Read the results by the plan, which refuses if it was changed."""
    from leyden.study.report import read_verdict

    print(read_verdict(directory))


@data.command()
def null(
    directory: Directory,
    runs: Annotated[int, typer.Option(min=4, help="Runs on the same data, which differ in their seed alone.")] = 24,
) -> None:
    """Measure how often the tests find a difference where there is none."""
    from leyden.study.report import read_null

    print(read_null(directory, num_runs=runs))


@data.command()
def power(
    sd: Annotated[float, typer.Option(help="Standard deviation of the items' paired differences.")],
    effect: Annotated[
        float | None, typer.Option(help="The smallest effect that matters: how many items find it?", show_default=False)
    ] = None,
    items: Annotated[
        int | None, typer.Option(min=2, help="Items there are: what effect do they find?", show_default=False)
    ] = None,
    run_sd: Annotated[float, typer.Option(min=0.0, help="Standard deviation of a run's mean between seeds.")] = 0.0,
    seeds: Annotated[int, typer.Option(min=2, help="Runs of each variant, where --run-sd is given.")] = 3,
    alpha: Alpha = 0.05,
    power: Power = 0.8,
) -> None:
    """Items that an effect needs, or the effect that items find, before anything is run."""
    from leyden.study.power import tell_power

    print(tell_power(sd, effect=effect, items=items, run_sd=run_sd, seeds=seeds, alpha=alpha, power=power))


@data.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where the study is kept.")] = Path("runs/study-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller still: checks that all of it runs.")] = False,
) -> None:
    """A data set planted worse: plan, runs, verdict and null experiments, in minutes on two CPU cores."""
    from leyden.study.demo import run_demo

    run_demo(directory, quick=quick, tell=print)
