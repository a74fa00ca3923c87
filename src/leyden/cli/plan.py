"""``leyden plan``: the best parallel plans for a number of GPUs, by arithmetic."""

from typing import Annotated

import typer


def plan(
    what: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe, or a preset (text-01, tiny, 1b, ...).")],
    gpus: Annotated[int, typer.Option(min=1, help="How many ranks there are.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value, as in --set model.num_local_experts=16.")
    ] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a sequence.", show_default=False)] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a step.", show_default=False)] = None,
    micro_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that all ranks take at once.", show_default=False)
    ] = None,
    memory: Annotated[str, typer.Option(help="Of a GPU.")] = "80GB",
    flops: Annotated[float, typer.Option(min=1, help="Per second, that matrix products of a GPU reach.")] = 600e12,
    intra: Annotated[float, typer.Option(min=0.001, help="GB/s that a GPU sends within its node.")] = 160.0,
    inter: Annotated[float, typer.Option(min=0.001, help="GB/s that a GPU sends to other nodes.")] = 45.0,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a node.")] = 8,
    best: Annotated[int, typer.Option(min=1, help="How many plans to print.")] = 5,
) -> None:
    """Search the plans for a number of GPUs, and print the fastest of those that fit."""
    from leyden.cli.options import size_of
    from leyden.parallel.planner.time import Machine
    from leyden.recipes.planning import plan_text

    machine = Machine(flops, intra * 1e9, inter * 1e9, gpus_per_node, size_of(memory))
    sizes = {"length": length, "batch_tokens": batch_tokens, "micro_batch_tokens": micro_batch_tokens}
    print(plan_text(what, settings or [], gpus, machine, **sizes, best=best), end="")
