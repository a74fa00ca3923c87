"""``[model] from = "MODEL"``: a run that begins with the weights, the tokenizer and the dtype of another model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from leyden.checkpoint.starting_model import StartingModel
from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import say
from leyden.data.builds.tokens import read_tokens
from leyden.model import TRAINING_FIELDS, ModelConfig, preset
from leyden.recipes.adapters import check_base
from leyden.recipes.schema import Recipe
from leyden.recipes.sections import DataSection, TokenizerSection
from leyden.recipes.vocabulary import check_extends, new_tokens_text
from leyden.tokenizer import Tokenizer

START_FILE = "from.json"
"""In a run's directory: which model it begins from, as it was found when the run was begun."""

CHANGEABLE = (
    "rope_theta",
    "rope_scaling",
    "max_position_embeddings",
    *TRAINING_FIELDS,
    "score_head",
    "num_nextn_predict_layers",
    "nextn_layer_type",
    "nextn_mlp_type",
)
"""What ``[model]`` may say beside ``from``: no weight has another shape or another meaning by it. A score head, or
modules for multi-token prediction, that the model has not are further ones, which begin as in a new model."""


def shape_from(section: dict[str, Any], vocab_size: int | None) -> dict[str, Any]:
    """The ``[model]`` table of a recipe whose run begins from a model, with every field said.

    A table that says the whole shape already, as that of a resolved recipe or one with a ``preset`` does, is read
    without its model too: the run may have come further than it, or the model is still to come.

    Args:
        section: as it was read.
        vocab_size: of the recipe's tokenizer or data build, for which the model gets rows unless the table says how
            many; None: the recipe names none, or it is not there.

    Raises:
        UserError: there is no such model, or the table says what its weights do not fit.
    """
    beside = {key: section[key] for key in ("from", "new_rows") if key in section}
    name, said = section["from"], {key: value for key, value in section.items() if key not in beside}
    if not isinstance(name, str) or not name:
        raise UserError(f"model.from must name a model: a directory, a run, a checkpoint or a hub id; given {name!r}.")
    if "preset" in said:
        said = preset(said["preset"], **{key: value for key, value in said.items() if key != "preset"}).model_dump(
            mode="json"
        )
    try:
        config = StartingModel.find(name).config
    except UserError:
        if not _is_whole(said):
            raise
        return {**ModelConfig.parse(said, "[model]").model_dump(), **beside}
    _refuse_other_shape(name, config, said)
    rows = {"vocab_size": max(config.vocab_size, vocab_size or 0)}
    shape = ModelConfig.parse(config.model_dump() | rows | said, "[model]")
    _refuse_more_than_was(name, config, shape)
    return {**shape.model_dump(), **beside}


def _is_whole(said: dict[str, Any]) -> bool:
    """Whether a table says every field that is never left out; tables of earlier versions have no scaling of RoPE."""
    fields = {name for name, field in ModelConfig.model_fields.items() if field.default is not None}
    return fields - {"rope_scaling", "num_nextn_predict_layers"} <= said.keys()


def _refuse_other_shape(name: str, config: ModelConfig, said: dict[str, Any]) -> None:
    there = config.model_dump(mode="json")
    rows = said.get("vocab_size")
    free = {*CHANGEABLE, "vocab_size"} if isinstance(rows, int) and rows > config.vocab_size else {*CHANGEABLE}
    others = [key for key, value in said.items() if key in there and key not in free and value != there[key]]
    if not others:
        return
    found = "; ".join(f"{key} is {there[key]!r} there and {said[key]!r} here" for key in others)
    one = len(others) == 1
    raise UserError(
        f"the weights of model.from = '{name}' do not fit [model]: {found}. Leave {'it' if one else 'them'} out to go "
        f"on with that model, in which {', '.join(CHANGEABLE)} may change, and vocab_size may grow; or leave from out, "
        "and a model of this shape begins with initial weights."
    )


def _refuse_more_than_was(name: str, config: ModelConfig, shape: ModelConfig) -> None:
    """Refuse a scaling of RoPE that stretches more positions than the model has had."""
    original = shape.rope_scaling.original_max_position_embeddings
    if original is not None and original > config.max_position_embeddings:
        raise UserError(
            f"model.rope_scaling.original_max_position_embeddings is {original}, and model.from = '{name}' has "
            f"{config.max_position_embeddings} positions (max_position_embeddings); say how many tokens the sequences "
            "had that it was trained on."
        )


def check_tokenizer(name: str, tokenizer: TokenizerSection, data: DataSection, said: set[str]) -> None:
    """Refuse tokens of another tokenizer than that of the model ``name`` or one that extends it, as far as they are
    there.

    Args:
        name: of the model; one that is not there any more is not asked.
        tokenizer, data: the sections.
        said: the keys of ``[tokenizer]`` that the recipe says.

    Raises:
        UserError: they are, or the model has no tokenizer and the recipe names none.
    """
    if tokenizer.path is None and said:
        raise UserError(
            f"[tokenizer] {', '.join(sorted(said))} is for a tokenizer that is trained, and model.from = '{name}' "
            "has its own: another one would give its weights other tokens. Leave [tokenizer] out."
        )
    try:
        start = StartingModel.find(name)
    except UserError:
        return
    place = data.build if data.build is not None else tokenizer.path
    if start.tokenizer is None and place is None:
        raise UserError(
            f"model.from = '{name}' has no tokenizer.json beside its weights; put it there, or name the directory that "
            "has it by tokenizer.path."
        )
    if place is None or not place.exists():
        return
    other = _tokenizer_of(tokenizer, data)
    assert other is not None, "one is named"
    if start.tokenizer is not None:
        check_extends(name, start.tokenizer, str(place), other)


def _tokenizer_of(tokenizer: TokenizerSection, data: DataSection) -> Tokenizer | None:
    """The one that a recipe names, by itself or by its data build; None where it names none."""
    if data.build is not None:
        return Tokenizer.load(read_tokens(data.build).tokenizer)
    return None if tokenizer.path is None else Tokenizer.load(tokenizer.path)


def settle_start(recipe: Recipe, directory: Path) -> StartingModel | None:
    """The model that the run in ``directory`` begins from, noted there; None where it begins with initial weights.

    A run that was begun and has no checkpoint yet begins from what it began from, though its name may mean another
    model by now (a run has come further).

    Raises:
        UserError: that model is gone, or has other weights now.
    """
    if recipe.starts_from is None:
        return None
    before = read_start(directory)
    if before is None or before.name != recipe.starts_from:
        start = StartingModel.find(recipe.starts_from)
        with atomic_file(directory / START_FILE) as part:
            part.write_text(json.dumps(start.record(), indent=1), encoding="utf-8")
        return start
    if StartingModel(before.name, before.directory).fingerprint != before.known:
        raise UserError(
            f"{before.directory} has other weights than when {directory} was begun from it; give another --dir, or "
            "bring that model back to what it was."
        )
    return before


def read_start(directory: Path) -> StartingModel | None:
    """What :func:`settle_start` noted in ``directory``."""
    path = directory / START_FILE
    if not path.exists():
        return None
    noted = json.loads(path.read_text(encoding="utf-8"))
    return StartingModel(noted["model"], Path(noted["directory"]), noted["fingerprint"])


def awaited_model(recipe: Recipe, directory: Path) -> str:
    """Says, as a comment line of a TOML file, that the model is not there yet from which a run would begin; else empty.

    Without its tokenizer nothing can be said of data.
    """
    if recipe.starts_from is None or read_start(directory) is not None:
        return ""
    try:
        StartingModel.find(recipe.starts_from)
    except UserError:
        name = recipe.starts_from
        return f"# {name} is not there yet, the model to begin from: nothing was checked of it or the data.\n"
    return ""


def tell_start(recipe: Recipe, start: StartingModel) -> None:
    """Say what a run takes over from a model, what it changes, and what is new.

    Raises:
        UserError: tensors are missing, or of other shapes than the model's own config.json says.
    """
    before, now = start.config.model_dump(mode="json"), recipe.model.model_dump(mode="json")
    _refuse_other_shape(start.name, start.config, now)
    if recipe.train.lora is not None:
        check_base(start, now)
    start = replace(start, new_rows=recipe.new_rows)
    changed = [f"{key} {_shown(before[key])} -> {_shown(now[key])}" for key in now if now[key] != before[key]]
    tokens, new = new_tokens_text(start, _tokenizer_of(recipe.tokenizer, recipe.data), recipe.model.vocab_size)
    kept = ", ".join(filter(None, [f"its {len(start.shapes)} weights", tokens]))
    new = ", ".join(filter(None, [new, "the optimizer's moments, the counters, the order of the data"]))
    dtype = str(start.dtype).removeprefix("torch.")
    say(
        f"the run begins from {start.directory} ({start.layout}, {dtype}). Kept: {kept}. Changed: "
        f"{', '.join(changed) or 'nothing'}. New: {new}."
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return "none" if value is None else str(value)
