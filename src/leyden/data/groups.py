"""From a build's documents to one folder of Parquet files for each group or source, to be tokenised by itself."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from leyden.core.errors import UserError
from leyden.data.documents import Documents
from leyden.data.engine import DataEngine
from leyden.data.parquet import DocumentsWriter, read_batches


def write_groups(
    paths: Sequence[Path], directory: Path, engine: DataEngine, by: Literal["group", "source"] = "group"
) -> dict[str, list[Path]]:
    """Part the documents that a build kept.

    Args:
        paths: its Parquet files, with different names.
        directory: gets ``GROUP/NAME.parquet``; what is special in a group's name is percent-encoded.
        engine: parts the files side by side.
        by: the group that a stage ``mixture`` gave each document, or its source.

    Returns:
        For each group, as a mixture of the loader names it, its files.

    Raises:
        UserError: documents without a group.
    """
    groups: dict[str, list[Path]] = {}
    for _, found in engine.map(partial(_part, directory=directory, by=by), list(paths)):
        for name, path in found.items():
            groups.setdefault(name, []).append(path)
    return {name: sorted(groups[name]) for name in sorted(groups)}


def folder_of(group: str) -> str:
    """A group's name as that of a folder: different groups, different folders."""
    return quote(group, safe="")


def _part(path: Path, directory: Path, by: str) -> dict[str, Path]:
    """One file's documents, by group; files that a batch wrote before it failed are not left behind."""
    writers: dict[str, DocumentsWriter] = {}
    places: dict[str, Path] = {}
    with ExitStack() as stack:
        for batch in read_batches(path):
            kept = batch.kept()
            groups = kept.column("source") if by == "source" else _groups(kept)
            if None in groups:
                name = kept.column("id")[groups.index(None)]
                raise UserError(f'{path}: document {name} has no group; a stage of kind = "mixture" gives it one.')
            for name in sorted({str(group) for group in groups}):
                if name not in writers:
                    places[name] = directory / folder_of(name) / f"{path.stem}.parquet"
                    writers[name] = stack.enter_context(DocumentsWriter(places[name]))
                writers[name].write(kept.where([group == name for group in groups]))
    return places


def _groups(documents: Documents) -> list[str | None]:
    return [json.loads(text or "{}").get("group") for text in documents.column("metadata")]
