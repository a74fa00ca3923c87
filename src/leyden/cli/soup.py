"""``leyden soup``: the average of several models' weights."""

from pathlib import Path
from typing import Annotated

import typer

from leyden.cli.options import LayoutName
from leyden.core.errors import UserError


def soup(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Models in any layout, runs, checkpoints of them, or hub ids."),
    ],
    directory: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write; it must not exist, or be empty.")],
    last: Annotated[
        int | None,
        typer.Option(min=2, help="Average the last so many checkpoints of the one run given.", show_default=False),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="The share of each model, as in 3,1; by default all alike.", show_default=False),
    ] = None,
    layout: Annotated[
        LayoutName | None,
        typer.Option(
            help="The layout to write; by default transformers, if it can express the model.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the model that is in the directory.")] = False,
) -> None:
    """Average the weights of models of one shape and one tokenizer, or of the last checkpoints of a run."""
    from leyden.checkpoint.soup import last_of_run
    from leyden.checkpoint.soup import soup as average

    if last is not None and len(models) > 1:
        raise UserError(f"--last takes the checkpoints of one run; given {len(models)} models: {', '.join(models)}.")
    of = models if last is None else last_of_run(models[0], last)
    average(of, directory, weights=None if weights is None else _numbers(weights), layout=layout, replace=force)
    print(f"the average of {', '.join(str(model) for model in of)} is in {directory}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--weights {text}: numbers with commas between them expected, as in 0.5,0.25,0.25.") from None
