"""``leyden info``: what a shape costs, before anything is built."""

from typing import Annotated

import typer


def info(
    what: Annotated[str, typer.Argument(help="A recipe, a model's directory, or a preset (text-01, tiny, 1b, ...).")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one value, as in --set model.num_local_experts=16 or --set parallel.cp=2."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of context that FLOPs and memory are stated at; 8192.", show_default=False),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks: also say memory and traffic of each, at these lengths.", show_default=False),
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a step.", show_default=False)] = None,
    micro_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that all ranks take at once.", show_default=False)
    ] = None,
) -> None:
    """Parameters, active parameters, FLOPs, and bytes of state and keys and values per token.

    With --gpus, also the memory of a rank and the bytes that it sends over every axis in a step.
    """
    from leyden.recipes import describe

    shape = [setting for setting in settings or [] if gpus is None or not setting.startswith("parallel.")]
    print(describe(what, shape, length or 8192))
    if gpus is not None:
        from leyden.parallel.planner.time import Machine
        from leyden.recipes.planning import cost_text

        sizes = {"length": length, "batch_tokens": batch_tokens, "micro_batch_tokens": micro_batch_tokens}
        print(cost_text(what, settings or [], gpus, Machine(), **sizes))
