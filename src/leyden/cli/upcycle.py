"""``leyden upcycle``: a model whose feed-forwards have become experts."""

from pathlib import Path
from typing import Annotated

import typer

from leyden.cli.options import LayoutName


def upcycle(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model in any layout, a run, a checkpoint of one, or a hub id.")
    ],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; it must not exist, or be empty.")],
    experts: Annotated[int, typer.Option(min=2, help="Experts of a layer.", show_default=False)],
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            min=1,
            help="Experts of a token; two feed-forwards' worth, or for a model with experts what keeps its result.",
            show_default=False,
        ),
    ] = None,
    parts: Annotated[int, typer.Option(min=1, help="Into how many finer experts a feed-forward is cut.")] = 1,
    noise: Annotated[
        float, typer.Option(help="Noise on each weight of an expert, as a share of the root mean square of its matrix.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the noise, and of the router of a dense model.")] = 0,
    layout: Annotated[
        LayoutName | None,
        typer.Option(
            help="The layout to write; by default transformers, if it can express the model.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the model that is in the directory.")] = False,
) -> None:
    """Copy a model's feed-forwards into experts, so that training goes on with a larger model from the same loss."""
    from leyden.checkpoint.upcycle import Upcycling
    from leyden.checkpoint.upcycle import upcycle as write

    write(model, directory, Upcycling(experts, top_k, parts, noise, seed), layout=layout, replace_old=force)
    print(f"{model} with {experts} experts a layer is in {directory}")
