"""The end of a build: its documents as token shards, each group of them in a folder of its own.

tokenizer/              trained on the documents, where none was named
tokens/GROUP/           token shards; with ``by = "all"`` there is one group, ``all``
tokens/groups.json      for each group its folder, documents and tokens, and what a mixture stage planned for it
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import say
from leyden.data.build.directory import Build, StageDirectory
from leyden.data.build.recipe import TokensSection
from leyden.data.engine import Engine
from leyden.data.groups import folder_of, write_groups
from leyden.data.shards import TokenShards
from leyden.data.tokenise import tokenise_files

GROUPS = "groups.json"


def make_tokens(
    settings: TokensSection, last: StageDirectory, fingerprints: Mapping[str, str], directory: Path, engine: Engine
) -> None:
    """Tokenise what the last stage kept; shards that are as they were are not made again.

    Args:
        settings: the recipe's ``[tokens]``.
        last: the last stage.
        fingerprints: of its shards.
        directory: of the build.
        engine: runs a task a shard.

    Raises:
        UserError: there are no documents, or too few for the vocabulary asked for.
    """
    tokenizer = settings.tokenizer or _trained(settings.vocab_size, last, fingerprints, directory / "tokenizer")
    paths, parted = [last.documents(shard) for shard in sorted(fingerprints)], directory / "tokens" / ".documents"
    shutil.rmtree(parted, ignore_errors=True)
    parts = {"all": paths} if settings.by == "all" else write_groups(paths, parted, engine, settings.by)
    found: dict[str, Any] = {}
    for group, paths in sorted(parts.items()):
        folder = directory / "tokens" / folder_of(group)
        shards = tokenise_files(paths, tokenizer, folder, engine, settings.layout)
        found[group] = {"folder": folder.name, "documents": shards.num_documents, "tokens": shards.num_tokens}
        say(f"tokens of {group}: {shards.num_tokens:,} in {shards.num_documents:,} documents")
    for folder in (directory / "tokens").iterdir():
        if folder.is_dir() and folder.name not in {one["folder"] for one in found.values()}:
            shutil.rmtree(folder)
    facts = {"tokenizer": str(tokenizer.resolve()), "groups": found}
    with atomic_file(directory / "tokens" / GROUPS) as part:
        part.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _trained(vocab_size: int, last: StageDirectory, fingerprints: Mapping[str, str], directory: Path) -> Path:
    """The directory of a tokenizer trained on the documents that are left, unless it is there."""
    from leyden.tokenizer import Tokenizer

    made_from = json.dumps([vocab_size, sorted(fingerprints.items())])
    mark = directory / "made_from"
    digest = hashlib.sha256(made_from.encode()).hexdigest()
    if not mark.exists() or mark.read_text() != digest:
        texts = (text for batch in last.read() for text in batch.texts())
        Tokenizer.train(texts, vocab_size=vocab_size).save(directory)
        mark.write_text(digest)
    return directory


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
        UserError: it has none, or they are damaged.
    """
    path = directory / "tokens" / GROUPS
    if not path.exists():
        raise UserError(f"{directory} has no tokens; give its recipe a [tokens] table and build it again.")
    facts = json.loads(path.read_text(encoding="utf-8"))
    groups = {name: TokenShards.open(path.parent / one["folder"]) for name, one in facts["groups"].items()}
    return BuildTokens(Path(facts["tokenizer"]), groups)


def held_out_texts(directory: Path) -> tuple[str, ...]:
    """The texts that a ``hold_out`` stage took out of a build.

    Raises:
        UserError: the build has no such stage, or it took nothing out.
    """
    stages = [stage for stage in Build.open(directory).stages() if stage.kind == "hold_out"]
    texts = [text for stage in stages for batch in stage.read(dropped=True) for text in batch.texts()]
    if not texts:
        raise UserError(f"{directory} holds no documents out to evaluate on; give its recipe a stage of kind hold_out.")
    return tuple(texts)
