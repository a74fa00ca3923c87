"""``leyden quickstart``: the shipped recipe of that name on whatever text is at hand."""

from collections.abc import Sequence
from pathlib import Path

from leyden.recipes.loader import load_recipe
from leyden.recipes.runner import run


def quickstart(*, text: Sequence[Path] = (), directory: Path = Path("runs/quickstart"), minutes: float = 5.0) -> Path:
    """From raw text to a model that answers.

    Args:
        text: files and folders; empty: the Python standard library's source.
        directory: the run's.
        minutes: about how long training takes.

    Returns:
        The directory of the finished model.
    """
    settings = [f"stage.pretrain.minutes={minutes}"]
    if text:
        settings.append(f"data.text={[str(path) for path in text]}")
    return run(load_recipe("quickstart", settings), directory)
