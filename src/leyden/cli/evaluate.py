"""``leyden eval``: how good a model is."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(help="A model's directory in any layout, a run, a checkpoint, or a hub id.")],
    text: Annotated[list[Path], typer.Option(help="Files or folders of documents that the model has not seen.")],
    task: Annotated[list[str], typer.Option(help="What to measure: bits_per_byte.")],
) -> None:
    """Measure a model on documents; bits per byte is set beside what xz reaches on the same bytes."""
    from leyden.evaluate import run_tasks

    print(run_tasks(model, task, text))
