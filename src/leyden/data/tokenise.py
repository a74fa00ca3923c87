"""Documents to token shards: from memory, or from a build's Parquet files, a task a file.

A document is ``[bos] + text + [eod]``. One of which a part alone is to be learned (a dialogue's answers, say) is cut
where that changes and each part tokenised by itself, so that no token lies in two of them; the ``eod`` goes with the
last.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.core.files import atomic_directory, atomic_file, discard
from leyden.core.log import Bar, logger, progress
from leyden.data.documents import Document
from leyden.data.marks import hash_file, read_mark, tell_damage, write_mark
from leyden.data.shards import END, METADATA, TOKEN, Shard, TokenShards, block_checksums, metadata_of, shard_files
from leyden.data.templates import lay_out
from leyden.tokenizer import GaveUpError, Tokenizer

if TYPE_CHECKING:
    from leyden.data.engine import DataEngine

_BATCH_CHARACTERS = 4 << 20  # tokenised at once: enough to occupy every core
_SHARD, _SHARD_METADATA = "shard", "shard.json"


class TextLayout(Config):
    """How dialogues, and questions with answers, become text, and what of them is learned."""

    style: Literal["plain", "light", "varied", "joined"] = "varied"
    """How turns are set off from each other: ``plain`` writes what was said, with empty lines between; ``joined`` the
    same with nothing between; ``light`` puts a word for the speaker before each (``User: ``); ``varied`` takes one of
    some thirty templates, by the document's id."""
    learn: Literal["all", "answers"] = "all"
    """Which tokens carry loss: ``all``, as in pre-training, or ``answers``: what the assistant says alone. Text that
    has no turns is learned whole."""


@dataclass(frozen=True)
class TokenisedDocument:
    """A document as tokens.

    Attributes:
        tokens: int32 [length], at least one.
        learned: bool [length], which of them are to be learned; None: all are.
        id, source: as the document's.
        num_bytes: UTF-8 bytes of its text.
    """

    tokens: np.ndarray
    learned: np.ndarray | None
    id: str
    source: str
    num_bytes: int


def write_shards(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    directory: Path,
    *,
    shard_tokens: int = 1 << 28,
    layout: TextLayout | None = None,
) -> TokenShards:
    """Tokenise ``documents`` into ``directory`` (replaced where it exists).

    A shard is closed with the document that takes it to ``shard_tokens`` (by default a file of 1 GiB).

    Raises:
        UserError: there are no documents, or the disk is full.
    """
    total = sum(len(document.text) for document in documents) if isinstance(documents, Sequence) else None
    with progress("tokenising", total, unit="characters") as bar:
        tokenised = _tokenise(documents, tokenizer, layout or TextLayout(), bar)
        return write_tokenised(tokenised, tokenizer, directory, shard_tokens=shard_tokens)


def write_tokenised(
    tokenised: Iterator[TokenisedDocument], tokenizer: Tokenizer, directory: Path, *, shard_tokens: int = 1 << 28
) -> TokenShards:
    """Documents that are tokens already as shards in ``directory``; otherwise as :func:`write_shards`."""
    shards: list[Shard] = []
    with atomic_directory(directory) as part:
        for first in tokenised:
            shards.append(_write_shard(part, f"{len(shards):05d}", itertools.chain([first], tokenised), shard_tokens))
        _write_metadata(part, tokenizer, shards)
    return TokenShards.open(directory)


def tokenise_files(
    paths: Sequence[Path], tokenizer: Path, directory: Path, engine: "DataEngine", layout: TextLayout | None = None
) -> TokenShards:
    """Tokenise Parquet files of documents, a shard each; what an interrupted call has finished is not made again.

    Args:
        paths: as :class:`leyden.data.parquet.DocumentsWriter` writes them, with different names; documents that a
            stage dropped are left out.
        tokenizer: its directory.
        directory: gets a folder for each file, and ``metadata.json`` at the end.
        engine: runs :func:`tokenise_shard` on every file.
        layout: of nested documents.

    Raises:
        UserError: there are no documents, or the disk is full.
    """
    made: list[Shard] = [_NO_SHARD] * len(paths)
    discard(directory / METADATA)  # until all shards are of the same settings, there is none
    for folder in directory.glob("*/"):
        if folder.name not in {path.stem for path in paths}:
            discard(folder)
    task = partial(tokenise_shard, tokenizer=tokenizer, directory=directory, layout=layout or TextLayout())
    with progress("tokenising", len(paths), unit="shards") as bar:
        for index, shard in engine.map(task, paths):
            made[index] = shard
            bar.advance()
    _write_metadata(directory, Tokenizer.load(tokenizer), made)
    return TokenShards.open(directory)


def tokenise_shard(path: Path, tokenizer: Path, directory: Path, layout: TextLayout) -> Shard:
    """Tokenise one Parquet file into ``directory / path.stem``, unless the same was done there before."""
    from leyden.data.parquet import read_batches

    definition = tokenizer / "tokenizer.json"
    loaded = _load(tokenizer, definition.stat().st_mtime_ns if definition.exists() else 0)
    given = f"{hash_file(path)} {loaded.fingerprint} {layout.model_dump_json()}"
    made_from = hashlib.sha256(given.encode()).hexdigest()
    folder = directory / path.stem
    before = read_mark(folder / _SHARD_METADATA)
    if before is not None and before.facts.get("made_from") == made_from:
        fault = before.fault()
        if fault is None:
            return Shard.model_validate(before.facts["shard"])
        tell_damage([fault])
    documents = (document for batch in read_batches(path) for document in batch.kept())
    with atomic_directory(folder) as part:
        shard = _write_shard(part, _SHARD, _tokenise(documents, loaded, layout), shard_tokens=None)
        files = shard_files(part, shard)
        shard = shard.model_copy(update={"name": f"{path.stem}/{_SHARD}"})
        write_mark(part / _SHARD_METADATA, files, {"made_from": made_from, "shard": shard.model_dump(mode="json")})
    return shard


@lru_cache(maxsize=1)
def _load(directory: Path, changed: int) -> Tokenizer:
    """A large one takes a second to load, and a process makes many shards."""
    return Tokenizer.load(directory)


_NO_SHARD = Shard(name="", num_documents=0, num_tokens=0, text_bytes=0, token_checksums=(), end_checksums=())


def _write_metadata(directory: Path, tokenizer: Tokenizer, shards: Iterable[Shard]) -> None:
    shards = tuple(shard for shard in shards if shard.num_documents)
    if not shards:
        raise UserError("There are no documents to tokenise.")
    metadata = metadata_of(shards, tokenizer.fingerprint, tokenizer.vocab_size)
    with atomic_file(directory / METADATA) as part:
        part.write_text(metadata.model_dump_json(indent=1) + "\n")


def _tokenise(
    documents: Iterable[Document], tokenizer: Tokenizer, layout: TextLayout, bar: Bar | None = None
) -> Iterator[TokenisedDocument]:
    from leyden.data.parquet import grouped  # pyarrow, where documents are read

    for batch in grouped(documents, _BATCH_CHARACTERS):
        parts = [_parts(document, layout) for document in batch]
        encoded = _encoded(batch, [[text for text, _ in of_document] for of_document in parts], tokenizer)
        for document, of_document, ids in zip(batch, parts, encoded, strict=True):
            if ids is None:
                continue
            yield TokenisedDocument(
                tokens=np.concatenate([[tokenizer.bos_id], *ids, [tokenizer.eod_id]], dtype=TOKEN),
                learned=_mask(ids, [learned for _, learned in of_document]),
                id=document.id,
                source=document.source,
                num_bytes=sum(len(text.encode()) for text, _ in of_document),
            )
        if bar is not None:
            bar.advance(sum(len(text) for document in parts for text, _ in document))


def _encoded(
    batch: Sequence[Document], texts: Sequence[list[str]], tokenizer: Tokenizer
) -> Iterator[list[np.ndarray] | None]:
    """The tokens of each document's texts; None, and a line, for one on which the tokenizer gives up."""
    try:
        together = iter(tokenizer.encode_batch(list(itertools.chain.from_iterable(texts))))
    except GaveUpError:
        for document, of_document in zip(batch, texts, strict=True):
            try:
                yield tokenizer.encode_batch(of_document)
            except GaveUpError as error:
                logger(__name__).warning("the document %s is left out: %s", document.id, error)
                yield None
        return
    yield from ([next(together) for _ in of_document] for of_document in texts)


def _parts(document: Document, layout: TextLayout) -> list[tuple[str, bool]]:
    """The document's text, cut where it begins or ceases to be learned."""
    if not document.messages:
        return [(document.text, True)]
    laid = lay_out(document, layout.style, layout.learn)
    bounds = [0, *itertools.chain.from_iterable(laid.learned), len(laid.text)]
    cuts = [(start, end, bool(number % 2)) for number, (start, end) in enumerate(itertools.pairwise(bounds))]
    return [(laid.text[start:end], learned) for start, end, learned in cuts if start < end] or [("", True)]


def _mask(ids: Sequence[np.ndarray], learned: Sequence[bool]) -> np.ndarray | None:
    """For each token of a document, bos and eod included, whether it is learned; None where all are."""
    if all(learned):
        return None
    counts = [len(part) for part in ids]
    counts[0] += 1
    counts[-1] += 1
    return np.repeat(np.array(learned), counts)


def _write_shard(directory: Path, name: str, tokenised: Iterable[TokenisedDocument], shard_tokens: int | None) -> Shard:
    """Write documents until there are ``shard_tokens``, or no more documents."""
    ends: list[int] = []
    masks: list[tuple[int, np.ndarray]] = []
    ids: list[str] = []
    sources: list[str] = []
    num_tokens = text_bytes = 0
    with (directory / f"{name}.tokens").open("wb") as file:
        for made in tokenised:
            file.write(made.tokens.data)
            if made.learned is not None:
                masks.append((num_tokens, np.packbits(made.learned)))
            num_tokens += len(made.tokens)
            ends.append(num_tokens)
            ids.append(made.id)
            sources.append(made.source)
            text_bytes += made.num_bytes
            if shard_tokens is not None and num_tokens >= shard_tokens:
                break
    (directory / f"{name}.ends").write_bytes(np.array(ends, END).data)
    _write_documents(directory / f"{name}.documents", ids, sources)
    if masks:
        _write_masks(directory / f"{name}.learned", masks, ends)
    return Shard(
        name=name,
        num_documents=len(ends),
        num_tokens=num_tokens,
        text_bytes=text_bytes,
        token_checksums=block_checksums(directory / f"{name}.tokens"),
        end_checksums=block_checksums(directory / f"{name}.ends"),
        document_checksums=block_checksums(directory / f"{name}.documents"),
        learned_checksums=block_checksums(directory / f"{name}.learned") if masks else None,
    )


def _write_documents(path: Path, ids: Sequence[str], sources: Sequence[str]) -> None:
    """Uncompressed Arrow, so that one row can be read without the others."""
    import pyarrow as pa

    columns = {"id": pa.array(ids, pa.large_string()), "source": pa.array(sources, pa.large_string())}
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _write_masks(path: Path, masks: Sequence[tuple[int, np.ndarray]], ends: Sequence[int]) -> None:
    """A bit a token, all ones but where a document has a mask; masks come as where they start, and packed bits."""
    length_of = dict(zip([0, *ends[:-1]], np.diff(ends, prepend=0).tolist(), strict=True))
    learned = np.ones(ends[-1], bool)
    for start, bits in masks:
        learned[start : start + length_of[start]] = np.unpackbits(bits, count=length_of[start])
    path.write_bytes(np.packbits(learned, bitorder="little").data)
