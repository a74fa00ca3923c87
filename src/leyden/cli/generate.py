"""``leyden generate``: completes one prompt and prints the text as it is generated."""

import sys
from typing import Annotated

import typer

from leyden.cli.options import Device


def generate(
    model: Annotated[str, typer.Argument(help="A model's directory in any layout, a run, a checkpoint, or a hub id.")],
    prompt: Annotated[str | None, typer.Argument(help="The beginning; standard input where left out.")] = None,
    max_tokens: Annotated[int, typer.Option(help="The most tokens to generate.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token every time.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw among the K best tokens.", show_default=False)] = None,
    top_p: Annotated[float, typer.Option(help="Draw among the tokens that hold this much probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same text.", show_default=False)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text appears.", show_default=False)] = None,
    device: Device = None,
) -> None:
    """Continue a text; the continuation goes to standard output, a line about speed to standard error."""
    from leyden.checkpoint import load
    from leyden.core.device import find_device
    from leyden.core.log import console
    from leyden.serve import Engine, Sampling

    sampling = Sampling(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=tuple(stop or ())
    )
    engine = Engine(*load(model, dtype="auto", device=find_device(device)), max_sequences=1)
    for chunk in engine.stream(sys.stdin.read() if prompt is None else prompt, sampling):
        print(chunk.text, end="", flush=True)
        if chunk.completion is not None:
            print()
            console.print(chunk.completion.speed(), style="dim", highlight=False)
