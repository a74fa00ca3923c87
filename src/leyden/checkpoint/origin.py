"""The origin of a model: what is known of the run that it lies in, from that run's recipe."""

import tomllib
from pathlib import Path
from typing import Any

NEVER_CONVERSED = (
    "This model was never trained on conversations: it goes on with the text it is given, and need not answer."
)


def never_conversed(model: str | Path) -> bool:
    """Whether a model is known to have been trained on plain text alone, so that its chats are no conversations.

    It is where the recipe of its run says so: every stage is pre-training, and the data are files of text (a build may
    hold dialogues). Of a model that lies in no run nothing is known.

    Args:
        model: a directory or a hub id; a run, its ``final``, or one of its checkpoints.
    """
    path = Path(model)
    recipe = recipe_of(path) if path.is_dir() else {}
    stages, data = recipe.get("stage"), recipe.get("data")
    if not isinstance(stages, list) or not isinstance(data, dict):
        return False
    plain = [isinstance(stage, dict) and stage.get("objective") == "pretrain" for stage in stages]
    return all(plain) and "text" in data and not data.get("build") and "from" not in recipe.get("model", {})


def recipe_of(path: Path) -> dict[str, Any]:
    """The recipe of the run that ``path`` is, or whose ``final`` or checkpoint it is; empty where there is none."""
    return read_recipe(run_of(path))


def run_of(path: Path) -> Path:
    """The folder of the run that ``path`` is, or whose ``final`` or checkpoint it is; of another model, its own."""
    path = path.resolve()
    return path.parent if path.name == "final" else path.parent.parent if path.parent.name == "checkpoints" else path


def read_recipe(run: Path) -> dict[str, Any]:
    """``recipe.toml`` of a run; empty where there is none that can be read."""
    try:
        return tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
