"""``leyden convert``: one layout of weights into another, or one file for llama.cpp."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from leyden.cli.options import AnyLayoutName


def convert(
    model: Annotated[str, typer.Argument(help="A model's directory in any layout, a run, a checkpoint, or a hub id.")],
    directory: Annotated[
        Path, typer.Argument(help="Where to write; it must not exist, or be empty. Of gguf: a file, NAME.gguf.")
    ],
    layout: Annotated[AnyLayoutName, typer.Option(help="The layout to write.")],
    dtype: Annotated[
        Literal["f32", "bf16", "q8_0"] | None,
        typer.Option(help="What matrices are stored as; by default as they are. q8_0 is of gguf.", show_default=False),
    ] = None,
    lora: Annotated[
        str | None, typer.Option("--lora", metavar="ADAPTER", help="An adapter to merge: a directory, or a run.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the model that is in the directory.")] = False,
) -> None:
    """Rewrite a model's weights, configuration and tokenizer in another layout; every tensor is accounted for."""
    from leyden.checkpoint import convert as convert_model

    convert_model(model, directory, layout=layout, dtype=dtype, replace=force, lora=lora)
    merged = f" with {lora} merged into it" if lora is not None else ""
    print(f"{model}{merged} is in {directory}, in the {layout} layout")
