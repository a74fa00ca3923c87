"""``[data] tokens``: a run on the token files of other toolkits, which are mapped where they are."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from leyden.core.checksums import write_checksums
from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.core.files import atomic_directory, atomic_file
from leyden.core.log import say
from leyden.data import TokenShards
from leyden.data.token_files import FileRecord, TokenSplit, read_token_files, split_tokens
from leyden.recipes.schema import Recipe
from leyden.tokenizer import Tokenizer

_RECORD, _SPLITS = "token_files.json", "held_out.npz"


class _Group(Config):
    """What was found in the files of one group."""

    fingerprint: str
    files: tuple[FileRecord, ...]


class _Record(Config):
    """``token_files.json``: the token files that a run began with."""

    groups: dict[str, _Group]

    @classmethod
    def read(cls, directory: Path) -> "_Record":
        path = directory / _RECORD
        return cls.parse(json.loads(path.read_text(encoding="utf-8")), str(path))

    def write(self, path: Path) -> None:
        with atomic_file(path) as part:
            part.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def map_token_files(
    recipe: Recipe, tokenizer: Tokenizer, known: "_Record | None" = None
) -> tuple[dict[str, TokenShards], "_Record"]:
    """The tokens that ``recipe`` names, by group, and what was found in their files.

    Args:
        recipe: with ``data.tokens``.
        tokenizer: the run's.
        known: what was found before; files that are as they were then are not read whole again.

    Raises:
        UserError: a file is missing, truncated, of another format, or of another tokenizer.
    """
    end = recipe.data.document_token
    if end is not None and end >= tokenizer.vocab_size:
        raise UserError(f"data.document_token ({end}) is no token of the tokenizer, which has {tokenizer.vocab_size}.")
    shards, groups = {}, {}
    for name, paths in recipe.data.token_groups.items():
        before = known.groups[name].files if known is not None and name in known.groups else ()
        shards[name], files = read_token_files(
            paths, tokenizer=tokenizer, document_token=tokenizer.eod_id if end is None else end, known=before
        )
        groups[name] = _Group(fingerprint=shards[name].fingerprint, files=files)
    return shards, _Record(groups=groups)


def adopt_token_files(recipe: Recipe, tokenizer: Tokenizer, directory: Path, tokens_directory: Path) -> None:
    """Note in a run's directory which tokens it trains on, and hold documents out; later on, compare.

    Args:
        recipe: with ``data.tokens``.
        tokenizer: the run's, which is saved in ``directory`` already.
        directory: of the run.
        tokens_directory: in it, gets the record of the files and of what is held out.

    Raises:
        UserError: the files are not what the run began with, or cannot be trained on.
    """
    known = _Record.read(tokens_directory) if tokens_directory.exists() else None
    shards, record = map_token_files(recipe, tokenizer, known)
    if known is not None:
        _compare(record, known, directory, tokens_directory)
        if record != known:  # they were moved or copied
            record.write(tokens_directory / _RECORD)
        return
    splits = split_tokens(shards, recipe.data.held_out_fraction)
    _write_held_out(shards, splits, tokenizer, directory)
    facts = {"tokenizer": str(recipe.tokenizer.path or recipe.starts_from)} | _facts(shards, splits)
    with atomic_file(directory / "data.json") as part:
        part.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    with atomic_directory(tokens_directory) as part:
        record.write(part / _RECORD)
        arrays = {f"{kind} {name}": getattr(splits[name], kind) for name in splits for kind in ("documents", "kept")}
        np.savez(part / _SPLITS, **arrays)
    names = (f"{tokens_directory.name}/{_SPLITS}", "held_out.jsonl")
    write_checksums(directory, [*(directory / name for name in names), *sorted((directory / "tokenizer").iterdir())])


def read_adopted(recipe: Recipe, tokenizer: Tokenizer, tokens_directory: Path) -> dict[str, TokenShards]:
    """The tokens to train on, by group, as :func:`adopt_token_files` left them.

    Raises:
        UserError: the files are not what the run began with.
    """
    known = _Record.read(tokens_directory)
    shards, record = map_token_files(recipe, tokenizer, known)
    _compare(record, known, tokens_directory.parent, tokens_directory)
    with np.load(tokens_directory / _SPLITS) as arrays:
        splits = {name: TokenSplit(arrays[f"documents {name}"], arrays[f"kept {name}"]) for name in shards}
    return {name: splits[name].train(shards[name]) for name in shards}


def _compare(record: _Record, known: _Record, directory: Path, tokens_directory: Path) -> None:
    changed = [
        name
        for name in sorted(record.groups.keys() | known.groups.keys())
        if name not in record.groups
        or name not in known.groups
        or record.groups[name].fingerprint != known.groups[name].fingerprint
    ]
    if changed:
        raise UserError(
            f"data.tokens has other tokens in {', '.join(changed)} than those that {directory} began with. Bring the "
            f"files back to what they were; or give another --dir; or, before the first checkpoint, remove "
            f"{tokens_directory}."
        )


def _write_held_out(
    shards: Mapping[str, TokenShards], splits: Mapping[str, TokenSplit], tokenizer: Tokenizer, directory: Path
) -> None:
    """The texts of what is held out, so that the model is measured in bits per byte, whatever tokens it has."""
    written = 0
    with atomic_file(directory / "held_out.jsonl") as part, part.open("w", encoding="utf-8") as file:
        for name, split in splits.items():
            for row, tokens in split.held_out(shards[name]):
                text = tokenizer.decode(tokens.tolist(), skip_special=True)
                if text:
                    file.write(json.dumps({"id": f"{name}#{row}", "text": text, "source": name}) + "\n")
                    written += 1
    if not written:
        raise UserError(
            "the documents of data.tokens that are held out have no text in this tokenizer, which therefore is not "
            "the one that made them; name that one by tokenizer.path."
        )


def _facts(shards: Mapping[str, TokenShards], splits: Mapping[str, TokenSplit]) -> dict[str, str]:
    """What a run's report says of its tokens; also said in the terminal."""
    facts = {}
    for name, group in shards.items():
        train = splits[name].train(group)
        facts[name] = (
            f"{train.num_documents:,} documents, {train.num_tokens:,} tokens to train on; "
            f"{len(splits[name].documents):,} documents, {group.num_tokens - train.num_tokens:,} tokens held out"
        )
        say(f"tokens of {name}: {facts[name]}")
    return facts
