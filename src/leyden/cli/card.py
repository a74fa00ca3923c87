"""``leyden card``: README.md of a model, as the hub shows it."""

from pathlib import Path
from typing import Annotated

import typer


def card(
    model: Annotated[
        str, typer.Argument(help="A model's directory in any layout, a run, a checkpoint, a GGUF file, or a hub id.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; by default README.md beside the weights.", show_default=False)
    ] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="Under which it is given, as apache-2.0.", show_default=False)
    ] = None,
    evaluations: Annotated[
        list[Path] | None,
        typer.Option("--eval", metavar="DIR", help="A folder of `leyden eval --out`, to add its figures; repeatable."),
    ] = None,
) -> None:
    """Write a model's card: its shape, data, training, evaluation, exactness and environment, and what is not known."""
    from leyden.evaluate.card import write_card

    print(write_card(model, out, license_name=license_name, evaluations=evaluations or ()))
