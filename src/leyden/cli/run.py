"""``leyden run``: carries out a recipe, from documents to a trained model."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's path, or the name of a shipped one.")],
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where the run is kept; runs/NAME by default.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one value, as in --set stage.0.lr=1e-3.", show_default=False),
    ] = None,
    resume: Annotated[
        Literal["auto", "never"], typer.Option(help="Go on with an earlier run there, or refuse.")
    ] = "auto",
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN[@STEP]",
            help="Begin where that run was at a step, in a new --dir.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Check the recipe, and its data where that is there; print it in full; do nothing.")
    ] = False,
) -> None:
    """Run a recipe; Ctrl-C saves, and the same command goes on from there, bit for bit."""
    from leyden.recipes import check, default_directory, load_recipe
    from leyden.recipes import run as run_recipe

    loaded = load_recipe(recipe, settings or [])
    where = directory or default_directory(recipe)
    if dry_run:
        print(check(loaded, where, resume=resume, origin=origin), end="")
        return
    run_recipe(loaded, where, resume=resume, origin=origin)
