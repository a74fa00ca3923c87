"""A recipe's file to a :class:`Recipe`, and back."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from leyden.core.config import dump_toml, override, read_toml
from leyden.core.errors import UserError, suggest
from leyden.data.builds.tokens import read_tokens
from leyden.recipes.schema import Recipe, model_section
from leyden.recipes.sections import DataSection, TokenizerSection
from leyden.recipes.starting import check_tokenizer, shape_from
from leyden.serve.config import EngineConfig
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
    """Validate the tables of a recipe; ``source`` opens the message of an error.

    Raises:
        UserError: they are no recipe, or the vocabulary is that of a tokenizer or a data build that is not there.
    """
    data = dict(data)
    tokenizer = TokenizerSection.parse(data.get("tokenizer", {}), f"{source}: [tokenizer]")
    section = data.get("model", {})
    said = isinstance(section, dict) and "vocab_size" in section
    data_section = DataSection.parse(data.get("data", {}), f"{source}: [data]")
    build = data_section.build
    if build is not None and "tokenizer" in data:
        raise UserError(
            f"{source}: [tokenizer] does not go with data.build, whose tokens have a tokenizer of their own; leave "
            "[tokenizer] out."
        )
    try:
        if isinstance(section, dict) and "from" in section:
            named = build is not None or tokenizer.path is not None
            data["model"] = shape_from(section, _vocabulary(tokenizer, build, said) if named else None)
            check_tokenizer(section["from"], tokenizer, data_section, set(data.get("tokenizer", {})))
        else:
            if data_section.tokens and tokenizer.path is None:
                raise UserError(
                    "data.tokens needs tokenizer.path, the directory with the tokenizer.json that made the tokens."
                )
            data["model"] = model_section(section, _vocabulary(tokenizer, build, said))
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return Recipe.parse(data, source)


def _vocabulary(tokenizer: TokenizerSection, build: Path | None, said: bool) -> int | None:
    """Tokens of the recipe's tokenizer.

    Where the model says its rows (``said``), a tokenizer that is elsewhere by now is not asked for, so that a resolved
    recipe can be read without its data: None. A run compares the two before its first step.
    """
    if build is not None:
        return None if said else Tokenizer.load(read_tokens(build).tokenizer).vocab_size
    if tokenizer.path is None:
        return tokenizer.vocab_size
    return None if said and not tokenizer.path.exists() else Tokenizer.load(tokenizer.path).vocab_size


def dry(recipe: Recipe) -> str:
    """The recipe as TOML with every value said; ``[serve]``, which no step depends on, where it is not the default."""
    ready = recipe.data.build is not None or (recipe.starts_from is not None and recipe.tokenizer.path is None)
    unused = {"tokenizer"} if ready else set()
    unused |= {"serve"} if recipe.serve == EngineConfig() else set()
    return dump_toml(recipe.model_dump(mode="json", exclude=unused))


def default_directory(recipe: str) -> Path:
    """``runs/NAME`` for a recipe named or filed as NAME."""
    return Path("runs") / Path(recipe).stem
