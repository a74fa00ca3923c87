"""``leyden quickstart``: from raw text to a model that answers."""

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    more: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="Further paths of --text.", show_default=False, hidden=True),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Files or folders to learn from; by default Python's standard library.", show_default=False),
    ] = None,
    directory: Annotated[Path, typer.Option("--dir", help="Where the run is kept.")] = Path("runs/quickstart"),
    minutes: Annotated[float, typer.Option(min=0.01, help="About how long training takes.")] = 5.0,
) -> None:
    """Train a small MiniMax-01 on this machine's own text, evaluate it, and let it write."""
    from leyden.recipes import quickstart as start

    if more and not text:
        raise typer.BadParameter(f"{more[0]} stands alone; texts to learn from follow --text")
    start(text=[*(text or []), *(more or [])], directory=directory, minutes=minutes)
