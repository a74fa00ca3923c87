"""``leyden info``: parameters, memory and operations of a model shape, by arithmetic."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from leyden.core.errors import UserError


def info(
    what: Annotated[
        str | None,
        typer.Argument(
            help="A recipe, a model's directory, a run, a checkpoint, or a preset (text-01, tiny, 1b, ...).",
            show_default=False,
        ),
    ] = None,
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
    memory: Annotated[str, typer.Option(help="Of a GPU.")] = "80GB",
    serve: Annotated[bool, typer.Option("--serve", help="What serving takes on --gpus, instead of training.")] = False,
    int8: Annotated[
        Literal["none", "layers", "all"], typer.Option(help="With --serve: which weights are in 8 bits.")
    ] = "none",
    max_sequences: Annotated[int, typer.Option(min=1, help="With --serve: sequences at once.")] = 32,
    chip: Annotated[
        str | None,
        typer.Option(
            help="The roofline of each op, and of decoding, on h100, h200, a100, ...; with --flops: where it trains.",
            show_default=False,
        ),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(
            help="A budget of training, as in 1e21: what size and tokens published laws propose for it.",
            show_default=False,
        ),
    ] = None,
    machine: Annotated[
        bool, typer.Option("--machine", help="What this machine is, which bodies of the ops run on it; its sandbox.")
    ] = False,
) -> None:
    """Parameters, active parameters, FLOPs, and bytes of state and keys and values per token.

    With --gpus, also the memory of a rank and the bytes that it sends over every axis in a step. With --serve, the
    weights, states, keys and values of each GPU that serves the model, and how many tokens fit. With --chip, the least
    time of each op on that chip by its published peaks. With --flops, the size of model and data that published scaling
    laws propose for such a budget, and the days that it takes; this needs no model.
    """
    if machine:
        print(_machine())
        if what is None:
            return
    if flops is not None:
        if serve or gpus is not None:
            raise UserError(
                "--flops tells of a budget of training; leave --gpus and --serve out, or ask for them alone."
            )
        print(_budget(flops, what, settings or [], chip, length or 8192))
        return
    if what is None:
        raise UserError("info needs a recipe, a model or a preset to tell of, or --machine, or --flops.")
    whole = gpus is None and not serve
    shape = [setting for setting in settings or [] if whole or not setting.startswith(("parallel.", "train."))]
    print(_shape(what, shape, length or 8192, chip))
    if serve:
        sizes = {"int8": int8, "length": length or 8192, "max_sequences": max_sequences}
        print(_serving(what, settings or [], gpus or 1, memory, sizes))
    elif gpus is not None:
        sizes = {"length": length, "batch_tokens": batch_tokens, "micro_batch_tokens": micro_batch_tokens}
        print(_training(what, settings or [], gpus, memory, sizes))


def _machine() -> str:
    from leyden.core.sandbox.probe import sandbox_text
    from leyden.ops.machine import machine_text

    return machine_text(sandbox=sandbox_text)


def _shape(what: str, settings: Sequence[str], length: int, chip: str | None) -> str:
    from leyden.recipes import describe

    described = describe(what, settings, length)
    return described if chip is None else f"{described}\n\n{_roofline(what, settings, chip, length)}"


def _budget(flops: float, what: str | None, settings: Sequence[str], chip: str | None, length: int) -> str:
    from leyden.core.chips import chip_named
    from leyden.recipes.budget import budget_text
    from leyden.recipes.info import read_shape

    return budget_text(flops, chip_named(chip or "h100"), None if what is None else read_shape(what, settings), length)


def _roofline(what: str, settings: Sequence[str], chip: str, length: int) -> str:
    from leyden.core.chips import chip_named
    from leyden.recipes.info import read_shape
    from leyden.recipes.roofline import roofline_text

    return roofline_text(read_shape(what, settings), chip_named(chip), length)


def _serving(what: str, settings: Sequence[str], gpus: int, memory: str, sizes: dict[str, Any]) -> str:
    from leyden.cli.options import size_of
    from leyden.recipes.serving import serving_text

    return serving_text(what, settings, gpus, size_of(memory), **sizes)


def _training(what: str, settings: Sequence[str], gpus: int, memory: str, sizes: dict[str, Any]) -> str:
    from leyden.cli.options import size_of
    from leyden.parallel.planner.time import Machine
    from leyden.recipes.planning import cost_text

    return cost_text(what, settings, gpus, Machine(memory_bytes=size_of(memory)), **sizes)
