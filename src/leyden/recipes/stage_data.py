"""The data of all stages of a run: the run's, and of a stage with ``[stage.data]`` its own, with the run's tokenizer.

A stage's own data are prepared as a run's are, in a folder of their own, before the first step of the run. They are a
pure function of what the recipe says of them, so that they are made again where that has changed; that a stage which
has begun goes on with the same tokens is seen by the fingerprint of its batches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from leyden.core.errors import UserError
from leyden.core.files import atomic_file, discard
from leyden.core.log import say
from leyden.data.groups import folder_of
from leyden.recipes.chats import count_rows
from leyden.recipes.prepare import (
    TOKENIZER_DIRECTORY,
    TOKENS_DIRECTORY,
    Prepared,
    check_sources,
    look_at_rows,
    prepare,
    read_build,
    read_prepared,
    read_token_files_as_given,
    tokenizer_at_hand,
    without_data,
)
from leyden.recipes.schema import Recipe, TrainingStage
from leyden.recipes.sections import TokenizerSection
from leyden.tokenizer import Tokenizer

STAGE_DATA_DIRECTORY = "stage_data"
"""Of a run: a folder for each stage with data of its own."""

_SECTION = "section.json"
"""In a stage's folder: what the recipe says of its data."""


def prepare_all(recipe: Recipe, directory: Path, first: int = 0) -> None:
    """Prepare the run's data, and those of the stages from ``first`` on that have their own.

    Raises:
        UserError: as :func:`leyden.recipes.prepare.prepare` does; the message names the stage.
    """
    prepare(recipe, directory)
    for stage in _stages_to_read(recipe, first):
        place = _place(directory, stage)
        assert stage.data is not None, "a stage with data of its own"
        section, note = stage.data.model_dump_json(), place / _SECTION
        if place.exists() and (not note.exists() or note.read_text(encoding="utf-8") != section):
            say(f"stage '{stage.name}' has other data now, which are read anew")
            discard(place)
        place.mkdir(parents=True, exist_ok=True)
        with atomic_file(note) as part:
            part.write_text(section, encoding="utf-8")
        with _named(stage):
            prepare(_with_its_data(recipe, stage, directory / TOKENIZER_DIRECTORY), place)


def read_all(recipe: Recipe, directory: Path, first: int = 0) -> Prepared:
    """What :func:`prepare_all` left for the stages from ``first`` on, each file checked.

    Raises:
        UserError: as :func:`leyden.recipes.prepare.read_prepared` does, or a stage's tokens are of another tokenizer.
    """
    prepared, own = read_prepared(recipe, directory), {}
    for stage in _stages_to_read(recipe, first):
        with _named(stage):
            found = read_prepared(
                _with_its_data(recipe, stage, directory / TOKENIZER_DIRECTORY), _place(directory, stage)
            )
            own[stage.name] = _of_tokenizer(found, prepared.tokenizer)
    return replace(prepared, own=own)


def look_at(recipe: Recipe, directory: Path, first: int = 0) -> Prepared | None:
    """As much of the data of the stages from ``first`` on as can be read without making anything.

    Returns:
        The data of the run, without shards where its text was not read yet, and those of stages that have their own
        and were read; None where nothing can be.

    Raises:
        UserError: they are not there, or cannot be trained on.
    """
    prepared = _look_at(recipe, directory)
    known = _known_tokenizer(recipe, directory) if prepared is None else prepared.tokenizer
    own: dict[str, Prepared] = {}
    for stage in _stages_to_read(recipe, first):
        with _named(stage):
            found = _look_at(
                _with_its_data(recipe, stage, _tokenizer_place(recipe, directory)), _place(directory, stage)
            )
            if found is not None:
                own[stage.name] = found if known is None else _of_tokenizer(found, known)
    if prepared is None and not own:
        return None
    return replace(prepared or Prepared(next(iter(own.values())).tokenizer, {}, ()), own=own)


def not_there(recipe: Recipe) -> str:
    """Which builds are still to be made, whose data nothing was checked of, as comment lines of a TOML file."""
    sections = [recipe.data, *(stage.data for stage in recipe.stage)]
    builds = {data.build: None for data in sections if data is not None and data.build is not None}
    missing = [build for build in builds if not build.exists()]
    return "".join(f"# {build} is not there yet: nothing was checked of its data.\n" for build in missing)


def _look_at(recipe: Recipe, directory: Path) -> Prepared | None:
    if not recipe.reads_data:
        return without_data(recipe, tokenizer_at_hand(recipe, directory))
    if recipe.data.build is not None:
        return read_build(recipe) if recipe.data.build.exists() else None
    if (directory / TOKENS_DIRECTORY).exists():
        return read_prepared(recipe, directory)
    if recipe.data.tokens:
        return read_token_files_as_given(recipe, directory)
    if recipe.data.rows is not None:
        return _look_at_rows(recipe, directory)
    check_sources(recipe)
    return None


def _look_at_rows(recipe: Recipe, directory: Path) -> Prepared | None:
    if recipe.tokenizer.path is not None or recipe.starts_from is not None:
        return look_at_rows(recipe, directory)
    count_rows(recipe)
    return None


def _known_tokenizer(recipe: Recipe, directory: Path) -> Tokenizer | None:
    """The run's, where it is not still to be trained."""
    named = recipe.tokenizer.path is not None or recipe.starts_from is not None
    return tokenizer_at_hand(recipe, directory) if named else None


def _tokenizer_place(recipe: Recipe, directory: Path) -> Path | None:
    kept = directory / TOKENIZER_DIRECTORY
    return kept if kept.exists() else recipe.tokenizer.path


def _stages_to_read(recipe: Recipe, first: int) -> Sequence[TrainingStage]:
    """Those with data of their own from ``first`` on, and the one before where a transition begins with it."""
    stage = recipe.stage[first] if first < len(recipe.stage) else None
    begins_before = first and stage is not None and stage.mixture is not None and stage.mixture.transition
    return [stage for stage in recipe.stage[first - bool(begins_before) :] if stage.data is not None]


def _with_its_data(recipe: Recipe, stage: TrainingStage, tokenizer: Path | None) -> Recipe:
    """The recipe of a run of one stage on its own data, with a tokenizer that exists."""
    alone = stage.model_copy(update={"data": None})
    section = recipe.tokenizer if tokenizer is None else TokenizerSection(path=tokenizer)
    start = recipe.starts_from if tokenizer is None else None
    return recipe.model_copy(update={"data": stage.data, "stage": (alone,), "tokenizer": section, "starts_from": start})


def _place(directory: Path, stage: TrainingStage) -> Path:
    return directory / STAGE_DATA_DIRECTORY / folder_of(stage.name)


def _of_tokenizer(found: Prepared, tokenizer: Tokenizer) -> Prepared:
    if found.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            "its data have the tokens of another tokenizer than the run; build them with the run's, named in the "
            "build's [tokens] tokenizer."
        )
    return found


@contextmanager
def _named(stage: TrainingStage) -> Iterator[None]:
    """Errors inside say which stage they are of."""
    try:
        yield
    except UserError as error:
        raise UserError(f"stage '{stage.name}': {error}") from None
