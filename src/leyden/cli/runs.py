"""``leyden report``, ``leyden ls`` and ``leyden compare``: what runs did, read from the files of their folders."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from leyden.evaluate.runs import RunSummary


def report(directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.")]) -> None:
    """Draw the report of a run, at any time; of one that is not finished, what there is so far."""
    from leyden.evaluate.report import PROGRESS, write_report
    from leyden.evaluate.runs import is_finished

    _check(directories)
    for directory in directories:
        print(write_report(directory, "index.html" if is_finished(directory) else PROGRESS))


def ls(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to look for runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line a run.")] = False,
) -> None:
    """List the runs in a folder: how far each is, and how good."""
    from leyden.core.errors import UserError
    from leyden.evaluate.runs import find_runs, summarise

    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; name the folder that holds your runs.")
    found = [summarise(directory) for directory in find_runs(folder)]
    if as_json:
        for run in found:
            print(json.dumps(run.as_json()))
    elif found:
        _print(_table(found, [str(run.directory) for run in found]))
    else:
        print(f"{folder} holds no runs.")


def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Also write a page with their curves, as FILE.html.", show_default=False)
    ] = None,
) -> None:
    """Set runs side by side: where each is, and in what their recipes differ."""
    from rich.table import Table

    from leyden.checkpoint.origin import read_recipe
    from leyden.core.page import refuse_to_replace_others
    from leyden.core.printable import printable
    from leyden.evaluate.compare import write_comparison
    from leyden.evaluate.runs import recipe_differences, summarise

    _check(directories)
    if out is not None:
        refuse_to_replace_others(out)
    names = [str(directory) for directory in directories]
    _print(_table([summarise(directory) for directory in directories], names))
    differences = Table(box=None, header_style="bold")
    for name in ("recipe", *names):
        differences.add_column(printable(name))
    for key, values in recipe_differences([read_recipe(directory) for directory in directories]):
        differences.add_row(key, *map(printable, values))
    _print(differences)
    if out is not None:
        write_comparison(directories, out)
        print(out)


def _check(directories: list[Path]) -> None:
    from leyden.core.errors import UserError
    from leyden.evaluate.runs import is_run

    for directory in directories:
        if not is_run(directory):
            what = "is not the folder of a run (it has no recipe.toml)" if directory.is_dir() else "does not exist"
            raise UserError(f"{directory} {what}; `leyden ls` lists the runs in a folder.")


def _table(runs: "list[RunSummary]", names: list[str]) -> "Table":
    from rich.table import Table

    from leyden.core.printable import printable
    from leyden.evaluate.runs import age

    table = Table(box=None, header_style="bold")
    for title in ("run", "state", "step", "tokens", "loss", "held out", "bits/byte", "tokens/s", "changed"):
        table.add_column(title, justify="left" if title in ("run", "state") else "right", no_wrap=title != "run")
    for run, name in zip(runs, names, strict=True):
        total = f"/{run.total_steps:,}" if run.total_steps else ""
        figures = (run.loss, run.held_out_loss, run.bits_per_byte)
        table.add_row(
            printable(name),
            run.state,
            f"{run.step:,}{total}",
            f"{run.tokens:,}",
            *("" if figure is None else f"{figure:.3f}" for figure in figures),
            "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
            age(run.changed) if run.changed else "",
        )
    return table


def _print(table: "Table") -> None:
    """To standard output; where that is no terminal, as wide as the table is."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=10_000)
    if table.row_count:
        console.print(table)
