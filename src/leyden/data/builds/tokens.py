"""The end of a build: its documents as token shards, each group of them in a folder of its own.

tokenizer/              trained on the documents, or the one that was named, so that the build has all that it needs
tokens/GROUP/           token shards; with ``by = "all"`` there is one group, ``all``
tokens/groups.json      for each group its folder, documents, tokens, and the fingerprint of its shards
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leyden.core.errors import UserError
from leyden.core.files import atomic_directory, atomic_file, discard
from leyden.core.log import say
from leyden.data.builds.directory import Build, StageDirectory
from leyden.data.builds.plan import digest, fingerprint
from leyden.data.builds.recipe import TokensSection
from leyden.data.documents import HeldOutDocument
from leyden.data.engine import DataEngine
from leyden.data.groups import folder_of, write_groups
from leyden.data.marks import read_mark, tell_damage, write_mark
from leyden.data.shards import TokenShards
from leyden.data.tokenise import tokenise_files

GROUPS = "groups.json"
TOKENS, TOKENIZER = "tokens", "tokenizer"
_MADE_FROM = "made_from.json"


def make_tokens(
    settings: TokensSection | None, last: StageDirectory, prints: Mapping[str, str], directory: Path, engine: DataEngine
) -> None:
    """Tokenise what the last stage kept; shards that are as they were are not made again.

    Args:
        settings: the recipe's ``[tokens]``; None: there are to be none.
        last: the last stage.
        prints: the fingerprints of its shards.
        directory: of the build.
        engine: runs a task a shard.

    Raises:
        UserError: there are no documents, or too few for the vocabulary asked for.
    """
    tokens = directory / TOKENS
    discard(tokens / GROUPS)
    if settings is None:
        discard(tokens)
        discard(directory / TOKENIZER)
        return
    tokenizer = _own_tokenizer(settings, last, prints, directory / TOKENIZER)
    paths, parted = [last.documents(shard) for shard in sorted(prints)], tokens / ".documents"
    discard(parted)
    parts = {"all": paths} if settings.by == "all" else write_groups(paths, parted, engine, settings.by)
    found: dict[str, Any] = {}
    for group, paths in sorted(parts.items()):
        folder = tokens / folder_of(group)
        shards = tokenise_files(paths, tokenizer, folder, engine, settings.layout)
        sizes = {"documents": shards.num_documents, "tokens": shards.num_tokens}
        found[group] = {"folder": folder.name, **sizes, "fingerprint": shards.fingerprint}
        say(f"tokens of {group}: {shards.num_tokens:,} in {shards.num_documents:,} documents")
    for folder in tokens.iterdir():
        if folder.is_dir() and folder.name not in {one["folder"] for one in found.values()}:
            discard(folder)
    with atomic_file(tokens / GROUPS) as part:
        part.write_text(json.dumps({"tokenizer": TOKENIZER, "groups": found}, indent=1), encoding="utf-8")


def _own_tokenizer(settings: TokensSection, last: StageDirectory, prints: Mapping[str, str], directory: Path) -> Path:
    """The directory of the build's tokenizer: trained on the documents that are left, or a copy of the one named."""
    from leyden.tokenizer import Tokenizer

    made_from = fingerprint([tokens_made_from(settings), *(f"{name} {prints[name]}" for name in sorted(prints))])
    mark = read_mark(directory / _MADE_FROM)
    if mark is not None and mark.facts.get("made_from") == made_from:
        fault = mark.fault()
        if fault is None:
            return directory
        tell_damage([fault])
    texts = (text for batch in last.read() for text in batch.texts())
    if settings.tokenizer is None:
        sizes = {"vocab_size": settings.vocab_size, "allow_smaller": settings.allow_smaller}
        made = Tokenizer.train(texts, **sizes, special=settings.special_tokens)
        if made.vocab_size < settings.vocab_size:
            say(f"the text supports a vocabulary of {made.vocab_size:,}, not of {settings.vocab_size:,}")
    else:
        made = Tokenizer.load(settings.tokenizer)
    with atomic_directory(directory) as part:
        made.save(part)
        write_mark(part / _MADE_FROM, sorted(part.iterdir()), {"made_from": made_from})
    return directory


def tokens_made_from(settings: TokensSection | None) -> str:
    """The fingerprint of what tokens are made with, beside the documents."""
    if settings is None:
        return "no tokens"
    folder = settings.tokenizer
    files = [] if folder is None else sorted(path for path in folder.glob("*.j*") if path.suffix in (".json", ".jinja"))
    said = settings.model_dump_json(exclude=None if settings.special_tokens else {"special_tokens"})  # as it was before
    return fingerprint([said, *(f"{path.name} {digest(path)}" for path in files)])


def tokens_files(directory: Path) -> list[Path]:
    """The small files of a build's tokens, which its mark vouches for; they vouch for the others."""
    groups = directory / TOKENS / GROUPS
    return [groups, *sorted((directory / TOKENIZER).iterdir())] if groups.exists() else []


def tokens_fault(directory: Path) -> str | None:
    """What is damaged of the tokens themselves, in words; None: nothing, or there are none."""
    try:
        if (directory / TOKENS / GROUPS).exists():
            for shards in open_groups(directory / TOKENS).values():
                shards.verify()
    except UserError as error:
        return str(error).partition(". ")[0]
    return None


def open_groups(tokens: Path) -> dict[str, TokenShards]:
    """The token shards of each group in the folder ``tokens`` of a build.

    Raises:
        UserError: they are damaged, or not those that the build ended with.
    """
    groups: dict[str, TokenShards] = {}
    for name, one in json.loads((tokens / GROUPS).read_bytes())["groups"].items():
        groups[name] = TokenShards.open(tokens / one["folder"])
        if groups[name].fingerprint != one["fingerprint"]:
            raise UserError(f"{tokens / one['folder']} is damaged: it is not what was written. Build it again.")
    return groups


@dataclass(frozen=True)
class BuildTokens:
    """The tokens of a build.

    Attributes:
        tokenizer: its directory.
        groups: token shards by group.
    """

    tokenizer: Path
    groups: Mapping[str, TokenShards]

    def facts(self) -> dict[str, object]:
        """What a run's report says of them."""
        sizes = {name: f"{g.num_documents:,} documents, {g.num_tokens:,} tokens" for name, g in self.groups.items()}
        return {"tokenizer": str(self.tokenizer), **sizes}


def read_tokens(directory: Path) -> BuildTokens:
    """The tokens that a build ended with.

    Raises:
        UserError: there is no such build, it has not finished, has no tokens, or they are damaged.
    """
    build = Build.whole(directory)
    mark = build.finished()
    if mark is None or not (directory / TOKENS / GROUPS).exists():
        raise UserError(f"{directory} has no tokens; give its recipe a [tokens] table and build it again.")
    fault = mark.fault()
    if fault:
        raise UserError(f"{fault}. To make it again: {build.command()}")
    return BuildTokens(directory / TOKENIZER, open_groups(directory / TOKENS))


def held_out_documents(directory: Path) -> tuple[HeldOutDocument, ...]:
    """The documents that a ``hold_out`` stage took out of a build.

    Their source is the group of tokens that they would be in, as far as they had one by then, and else the source that
    they were read from.

    Raises:
        UserError: there is no such build, it has not finished, has no such stage, or it took nothing out.
    """
    stages = [stage for stage in Build.whole(directory).stages() if stage.kind == "hold_out"]
    tokens = directory / TOKENS / GROUPS
    groups = json.loads(tokens.read_bytes())["groups"] if tokens.exists() else {}
    found = []
    for batch in (batch for stage in stages for batch in stage.read(dropped=True)):
        columns = (batch.column(name) for name in ("source", "metadata"))
        for text, source, metadata in zip(batch.texts(), *columns, strict=True):
            group = json.loads(metadata or "{}").get("group")
            found.append(HeldOutDocument(text, group if group in groups else source))
    if not found:
        raise UserError(f"{directory} holds no documents out to evaluate on; give its recipe a stage of kind hold_out.")
    return tuple(found)
