"""``leyden bench``: how fast, beside what else there is."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure Leyden beside other software, in one run.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Keeps `cpu` a verb of its own while it is the only one."""


@app.command()
def cpu(
    quick: Annotated[bool, typer.Option(help="Small shapes and few repeats: checks that all of it runs.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where to write the figures as JSON.", show_default=False)] = None,
) -> None:
    """Training, prefill, decoding and memory beside transformers on two CPU threads."""
    from leyden.bench import run_cpu

    run_cpu(quick=quick, output=output)
