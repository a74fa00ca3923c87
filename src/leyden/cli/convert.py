"""``leyden convert``: one layout of weights into another."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def convert(
    model: Annotated[str, typer.Argument(help="A model's directory in any layout, a run, a checkpoint, or a hub id.")],
    directory: Annotated[Path, typer.Argument(help="Where to write; it must not exist, or be empty.")],
    layout: Annotated[Literal["transformers", "minimax", "leyden"], typer.Option(help="The layout to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the model that is in the directory.")] = False,
) -> None:
    """Rewrite a model's weights, configuration and tokenizer in another layout; every tensor is accounted for."""
    from leyden.checkpoint import convert as convert_model

    convert_model(model, directory, layout=layout, replace=force)
    print(f"{model} is in {directory}, in the {layout} layout")
