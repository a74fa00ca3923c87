"""``leyden info``: what a shape costs, before anything is built."""

from typing import Annotated

import typer


def info(
    what: Annotated[str, typer.Argument(help="A recipe, a model's directory, or a preset (text-01, tiny, 1b, ...).")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one value of the shape, as in --set model.num_local_experts=16."),
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Tokens of context that FLOPs and memory are stated at.")] = 8192,
) -> None:
    """Parameters, active parameters, FLOPs, and bytes of state and keys and values per token."""
    from leyden.recipes import describe

    print(describe(what, settings or [], length))
