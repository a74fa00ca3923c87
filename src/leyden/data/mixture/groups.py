"""From a build's documents to one folder of Parquet files for each group of a mixture, to be tokenised by itself."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import quote

from leyden.core.errors import UserError
from leyden.data.documents import Documents
from leyden.data.engine import Engine
from leyden.data.parquet import DocumentsWriter, read_batches


def write_groups(paths: Sequence[Path], directory: Path, engine: Engine) -> dict[str, list[Path]]:
    """Part the documents that a build with a stage ``mixture`` kept.

    Args:
        paths: its Parquet files, with different names.
        directory: gets ``GROUP/NAME.parquet``; what is special in a group's name is percent-encoded.
        engine: parts the files side by side.

    Returns:
        For each group, as a mixture of the loader names it, its files.

    Raises:
        UserError: documents without a group.
    """
    groups: dict[str, list[Path]] = {}
    for _, found in engine.map(partial(_part, directory=directory), list(paths)):
        for name, path in found.items():
            groups.setdefault(name, []).append(path)
    return {name: sorted(groups[name]) for name in sorted(groups)}


def _part(path: Path, directory: Path) -> dict[str, Path]:
    """One file's documents, by group; files that a batch wrote before it failed are not left behind."""
    writers: dict[str, DocumentsWriter] = {}
    places: dict[str, Path] = {}
    with ExitStack() as stack:
        for batch in read_batches(path):
            kept = batch.kept()
            groups = [json.loads(text or "{}").get("group") for text in kept.column("metadata")]
            if None in groups:
                name = kept.column("id")[groups.index(None)]
                raise UserError(f'{path}: document {name} has no group; a stage of kind = "mixture" gives it one.')
            for name in sorted(set(groups)):
                if name not in writers:
                    places[name] = directory / quote(name, safe="") / f"{path.stem}.parquet"
                    writers[name] = stack.enter_context(DocumentsWriter(places[name]))
                writers[name].write(Documents(kept.table.filter([group == name for group in groups])))
    return places
