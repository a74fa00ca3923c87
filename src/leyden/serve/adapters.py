"""Adapters on disk become adapters of a model that is served: ``leyden serve MODEL --lora NAME=DIR``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from leyden.checkpoint.adapter import find_adapter, modules_of, read_adapter
from leyden.checkpoint.hub import find_model
from leyden.checkpoint.merged_weights import check_base
from leyden.checkpoint.model_directory import open_stored
from leyden.core.errors import UserError
from leyden.model import HybridLM
from leyden.model.adapter_set import AdapterSet
from leyden.tokenizer import Tokenizer


def named_adapters(given: Sequence[str], taken: Sequence[str]) -> dict[str, Path]:
    """The directories of ``NAME=DIR`` options, by name.

    Args:
        given: the options.
        taken: what clients call the model itself.

    Raises:
        UserError: an option of another form, a name that is taken, or a directory without an adapter.
    """
    found: dict[str, Path] = {}
    for option in given:
        name, separator, directory = option.partition("=")
        if not separator or not name or not directory or "\0" in name:
            raise UserError(
                f"--lora {option}: give the name that requests ask for, and where the adapter is: NAME=DIR."
            )
        if name in found or name in taken:
            raise UserError(f"--lora {option}: {name!r} is the name of something else here; give it another.")
        found[name] = find_adapter(directory)
    return found


def add_adapters(
    model: HybridLM, tokenizer: Tokenizer | None, source: str | Path, adapters: Mapping[str, Path]
) -> None:
    """Let rows of ``model`` be computed with ``adapters``, none of them merged; before an engine is made of it.

    Args:
        model: on one process, in floats or in 8 bits; changed in place.
        tokenizer: of the model.
        source: the model's directory, or what it was found by.
        adapters: their directories, by the names that requests choose them by.

    Raises:
        UserError: one is of another model, of another tokenizer, or damaged.
    """
    weights = open_stored(find_model(source), verify=False).weights
    found = {}
    for name, directory in adapters.items():
        stored = read_adapter(directory, model.config)
        check_base(stored, weights)
        if (directory / "tokenizer.json").exists() and tokenizer is not None:
            _check_tokenizer(directory, tokenizer, source)
        found[name] = modules_of(model, stored)
    AdapterSet(model, found)


def _check_tokenizer(directory: Path, tokenizer: Tokenizer, source: str | Path) -> None:
    if Tokenizer.load(directory).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"the adapter {directory} has another tokenizer, or another chat template, than {source}, and a server has "
            "one of each. Merge it and serve that by itself: "
            f"leyden convert {source} DIR --layout leyden --lora {directory}"
        )
