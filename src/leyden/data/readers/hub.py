"""Datasets of the Hugging Face hub, downloaded where a recipe names one (``hf://OWNER/NAME``)."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from leyden.core.errors import UserError
from leyden.data.documents import Reject
from leyden.data.sources import FORMATS, PACKED, SourceFile, find_sources

DATA_FORMATS = ("text", "jsonl", "parquet", "arrow", "warc")
"""What is read of a dataset unless its recipe names a format: not its README, nor the scripts that made it."""

_NAME = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/(.+))?")


def download(name: str, formats: Iterable[str], skipped: list[Reject]) -> list[SourceFile]:
    """The files of a dataset of the hub that can be read, fetched into huggingface_hub's cache unless they are there.

    Args:
        name: ``hf://OWNER/NAME``, and where wanted ``@REVISION`` and ``/FOLDER`` or ``/FILE``.
        formats: which of :data:`~leyden.data.sources.FORMATS` are read.
        skipped: takes what is there and is not read, with reasons.

    Raises:
        UserError: the name is none, the hub cannot be reached, or it has no such dataset.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"{name} names no dataset of the hub; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION/FOLDER."
        )
    repository, revision, inside = match.groups()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{name} needs the package huggingface_hub: pip install huggingface_hub.") from None
    wanted = set(formats)
    suffixes = [
        suffix + packed for of_format in sorted(wanted) for suffix in FORMATS[of_format] for packed in ("", *PACKED)
    ]
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[f"{inside}/**", inside] if inside else [f"*{suffix}" for suffix in suffixes],
        )
    except Exception as error:  # of httpx, of the hub, of the disk
        why = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise UserError(
            f"{name} could not be had from the hub ({why}). Without a network, name a folder with its files instead."
        ) from None
    root = Path(folder)
    files, not_read = find_sources([root / inside if inside else root], wanted, ())
    skipped += not_read
    return [SourceFile(file.path, f"{repository}/{file.path.relative_to(root).as_posix()}") for file in files]
