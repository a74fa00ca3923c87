"""A recipe's file to a :class:`Recipe`, and back."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from leyden.core.config import dump_toml, override, read_toml
from leyden.core.errors import UserError, suggest
from leyden.recipes.schema import Recipe, TokenizerSection, model_section
from leyden.tokenizer import Tokenizer

_SHIPPED = "leyden.recipes.shipped"


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with Leyden, by name."""
    paths = [Path(str(entry)) for entry in files(_SHIPPED).iterdir() if entry.name.endswith(".toml")]
    return {path.stem: path for path in sorted(paths)}


def load_recipe(recipe: str, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        recipe: the path of a TOML file, or the name of a shipped recipe.
        settings: ``path=value`` changes.

    Raises:
        UserError: no such file or recipe, an unknown key (with the near name), or values that do not fit together.
    """
    path = Path(recipe)
    shipped = shipped_recipes()
    if not path.exists() and recipe in shipped:
        path = shipped[recipe]
    if not path.exists():
        raise UserError(f"{recipe} is neither a file nor a shipped recipe{suggest(recipe, shipped)}")
    return parse_recipe(override(read_toml(path), settings), str(recipe))


def parse_recipe(data: dict[str, Any], source: str) -> Recipe:
    """Validate the tables of a recipe; ``source`` opens the message of an error."""
    data = dict(data)
    tokenizer = TokenizerSection.parse(data.get("tokenizer", {}), f"{source}: [tokenizer]")
    vocab_size = tokenizer.vocab_size if tokenizer.path is None else Tokenizer.load(tokenizer.path).vocab_size
    try:
        data["model"] = model_section(data.get("model", {}), vocab_size)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return Recipe.parse(data, source)


def dry(recipe: Recipe) -> str:
    """The recipe as TOML with every value said."""
    return dump_toml(recipe.model_dump(mode="json"))


def default_directory(recipe: str) -> Path:
    """``runs/NAME`` for a recipe named or filed as NAME."""
    return Path("runs") / Path(recipe).stem
