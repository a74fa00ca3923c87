"""Tokenisation before a run: documents become token shards once, and what the run's folder holds is not made again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from leyden.checkpoint.starting_model import StartingModel
from leyden.core.checksums import changed_files, write_checksums
from leyden.core.errors import UserError
from leyden.core.files import atomic_file, discard
from leyden.core.log import say
from leyden.data import TokenShards, find_sources
from leyden.data.builds.recipe import TokensSection
from leyden.data.builds.run import run_build
from leyden.data.builds.text import HOLD_OUT_STAGE, TextReport, documents_of, text_recipe
from leyden.data.builds.tokens import (
    GROUPS,
    TOKENIZER,
    TOKENS,
    BuildTokens,
    held_out_documents,
    open_groups,
    read_tokens,
)
from leyden.data.documents import HeldOutDocument
from leyden.data.sources import is_of_standard_library
from leyden.data.tokenise import TextLayout
from leyden.recipes.chats import make_rows, read_rows_made, rows_in_memory
from leyden.recipes.filling import special_tokens
from leyden.recipes.schema import Recipe, TrainingStage
from leyden.recipes.starting import read_start
from leyden.recipes.token_files import adopt_token_files, map_token_files, read_adopted
from leyden.tokenizer import Tokenizer

TOKENS_DIRECTORY = "data"
"""Of a run on ``text``; once it is there, the documents have been read and the tokenizer trained."""

TOKENIZER_DIRECTORY = "tokenizer"
"""Of every run: the tokenizer that its model is trained with, whoever made it."""

BUILD_DIRECTORY = "build"
"""Of a run on ``text``, while its documents are read: the data build that makes the tokens. Then it is removed."""

FORK_FILE = "fork.json"
"""Of a run that began where another was; its tokenizer is there before its tokens are."""

_HELD_OUT = "held_out.jsonl"


def has_begun(directory: Path) -> bool:
    """Whether a run has made something there that belongs to its recipe: tokens, or a checkpoint."""
    return any((directory / name).exists() for name in (TOKENS_DIRECTORY, "checkpoints"))


@dataclass(frozen=True)
class Prepared:
    """What training and evaluation need of the data.

    Attributes:
        tokenizer: the run's.
        shards: tokens of the documents to train on, by group: ``all``, or those of a data build, of token files or of
            text; none where text was not read yet.
        held_out: the documents to evaluate on.
        held_out_rows: the chats, pairs or solutions to evaluate on, of a run or stage on such; None: there are none.
        own: by the name of a stage, the data of its own.
    """

    tokenizer: Tokenizer
    shards: Mapping[str, TokenShards]
    held_out: tuple[HeldOutDocument, ...]
    held_out_rows: TokenShards | None = None
    own: Mapping[str, "Prepared"] = field(default_factory=dict)

    def of(self, stage: TrainingStage) -> "Prepared":
        """What a stage is trained on."""
        return (
            self
            if stage.data is None
            else self.own.get(stage.name, replace(self, shards={}, held_out=(), held_out_rows=None))
        )


def prepare(recipe: Recipe, directory: Path) -> None:
    """Read the documents, hold some out, train or load the tokenizer, and tokenise; or take token files as they are.

    Writes ``tokenizer/``, ``data.json`` (what was read), ``held_out.jsonl`` and ``data/`` into ``directory``; where the
    last of them exists, nothing is left to do. Of several ranks one does this, and all read it afterwards.

    Raises:
        UserError: no documents, a vocabulary larger than they support, or a data build that cannot be trained on.
    """
    if recipe.data.build is not None:
        _adopt_build(recipe.data.build, directory)
        return
    shards = directory / TOKENS_DIRECTORY
    if not recipe.reads_data:
        if not shards.exists():
            tokenizer_at_hand(recipe, directory).save(directory / TOKENIZER_DIRECTORY)
            write_checksums(directory, sorted((directory / TOKENIZER_DIRECTORY).iterdir()))
            shards.mkdir()
        return
    if recipe.data.rows is not None:
        if not shards.exists():
            tokenizer_at_hand(recipe, directory).save(directory / TOKENIZER_DIRECTORY)
            make_rows(recipe, Tokenizer.load(directory / TOKENIZER_DIRECTORY), directory, shards)
        return
    if recipe.data.tokens:
        if shards.exists():
            _check_files(directory)
        else:
            tokenizer_at_hand(recipe, directory).save(directory / TOKENIZER_DIRECTORY)
        adopt_token_files(recipe, Tokenizer.load(directory / TOKENIZER_DIRECTORY), directory, shards)
        return
    if not shards.exists():
        _build_text(recipe, directory, shards)
    discard(directory / BUILD_DIRECTORY)


def check_sources(recipe: Recipe) -> None:
    """Refuse a recipe on text that is not there, or whose tokenizer is not; nothing is read of the text.

    Raises:
        UserError: what is missing.
    """
    for paths in recipe.data.text_groups.values():
        files = [path for path in paths if not is_of_standard_library(path)]
        if files and not find_sources(files)[0]:
            raise UserError(f"there is nothing to read in {', '.join(map(str, files))}; give more text.")
    if recipe.tokenizer.path is not None:
        Tokenizer.load(recipe.tokenizer.path)


def read_prepared(recipe: Recipe, directory: Path) -> Prepared:
    """What :func:`prepare` left, each file checked to be what was written.

    Raises:
        UserError: it is not there, is damaged, or does not belong together: tokens of another tokenizer, or a
            tokenizer with more tokens than the model has rows.
    """
    if recipe.data.build is not None:
        return read_build(recipe)
    shards = directory / TOKENS_DIRECTORY
    if not shards.exists():
        raise UserError(
            f"{shards} is not there for this rank; the directory of a run must be the same one for all ranks, on a "
            "file system that all machines share."
        )
    _check_files(directory)
    if not recipe.reads_data:
        return without_data(recipe, Tokenizer.load(directory / TOKENIZER_DIRECTORY))
    if recipe.data.rows is not None:
        tokenizer = Tokenizer.load(directory / TOKENIZER_DIRECTORY)
        return _of_rows(recipe, tokenizer, *read_rows_made(recipe, shards), place=str(directory / TOKENIZER_DIRECTORY))
    lines = (directory / _HELD_OUT).read_text(encoding="utf-8").splitlines()
    held_out = tuple(HeldOutDocument(one["text"], one["source"]) for one in map(json.loads, lines))
    tokenizer = Tokenizer.load(directory / TOKENIZER_DIRECTORY)
    opened = read_adopted(recipe, tokenizer, shards) if recipe.data.tokens else _open_text(shards)
    prepared = Prepared(tokenizer, opened, held_out)
    _check_tokenizer(recipe, prepared, f"{directory / TOKENIZER_DIRECTORY}")
    return prepared


def read_build(recipe: Recipe) -> Prepared:
    """The data build that ``recipe`` names, as a run takes it.

    Raises:
        UserError: there is none, it has not finished, or its tokenizer has more tokens than the model has rows.
    """
    assert recipe.data.build is not None, "a recipe on a build"
    tokens = read_tokens(recipe.data.build)
    prepared = Prepared(Tokenizer.load(tokens.tokenizer), tokens.groups, held_out_documents(recipe.data.build))
    _check_tokenizer(recipe, prepared, f"{tokens.tokenizer}")
    return prepared


def read_token_files_as_given(recipe: Recipe, directory: Path) -> Prepared:
    """The token files that ``recipe`` names, before a run has held anything of them out.

    Raises:
        UserError: they cannot be trained on.
    """
    tokenizer = tokenizer_at_hand(recipe, directory)
    prepared = Prepared(tokenizer, map_token_files(recipe, tokenizer)[0], ())
    _check_tokenizer(recipe, prepared, f"{recipe.tokenizer.path or recipe.starts_from}")
    return prepared


def look_at_rows(recipe: Recipe, directory: Path) -> Prepared:
    """The chats, pairs or solutions that ``recipe`` names, read and tokenised in memory: what a dry run says of them.

    Raises:
        UserError: they cannot be trained on.
    """
    tokenizer = tokenizer_at_hand(recipe, directory)
    parts = rows_in_memory(recipe, tokenizer)
    return _of_rows(recipe, tokenizer, *parts, place=f"{recipe.tokenizer.path or recipe.starts_from}")


def without_data(recipe: Recipe, tokenizer: Tokenizer) -> Prepared:
    """What there is of a recipe whose stages read nothing but data of their own.

    Raises:
        UserError: the model has fewer rows than the tokenizer tokens.
    """
    prepared = Prepared(tokenizer, {}, ())
    _check_tokenizer(recipe, prepared, f"{recipe.tokenizer.path or recipe.starts_from}")
    return prepared


def _of_rows(
    recipe: Recipe, tokenizer: Tokenizer, train: TokenShards, held_out: TokenShards | None, *, place: str
) -> Prepared:
    prepared = Prepared(tokenizer, {"all": train}, (), held_out)
    _check_tokenizer(recipe, prepared, place)
    return prepared


def _check_tokenizer(recipe: Recipe, prepared: Prepared, place: str) -> None:
    """Refuse tokens of another tokenizer, and a model that has no row for some of them."""
    for group, shards in prepared.shards.items():
        if shards.tokenizer_fingerprint and shards.tokenizer_fingerprint != prepared.tokenizer.fingerprint:
            raise UserError(
                f"{place} is not the tokenizer that the tokens of '{group}' in {shards.directory} were made with: one "
                "of them was changed. Bring back what it was, or have both made again."
            )
    rows, needed = recipe.model.vocab_size, prepared.tokenizer.vocab_size
    if rows < needed:
        raise UserError(
            f"model.vocab_size ({rows}) is smaller than the vocabulary of the tokenizer in {place} ({needed}); leave "
            "model.vocab_size out, or make it that large."
        )


def _adopt_build(build: Path, directory: Path) -> None:
    """Keep the build's tokenizer with the run, and in ``build.json`` which tokens it trains on, so that it resumes on
    no others."""
    tokens = read_tokens(build)
    mark = directory / "build.json"
    if has_begun(directory) and mark.exists() and json.loads(mark.read_text(encoding="utf-8")) != _prints(tokens):
        raise UserError(
            f"The build {build} has other tokens than those that {directory} began with; give another --dir, or bring "
            "the build back to what it was."
        )
    Tokenizer.load(tokens.tokenizer).save(directory / TOKENIZER_DIRECTORY)
    with atomic_file(mark) as part:
        part.write_text(json.dumps(_prints(tokens)), encoding="utf-8")
    with atomic_file(directory / "data.json") as part:
        part.write_text(json.dumps(tokens.facts(), indent=1), encoding="utf-8")


def _prints(tokens: BuildTokens) -> dict[str, str]:
    return {group: shards.fingerprint for group, shards in tokens.groups.items()}


def tokenizer_at_hand(recipe: Recipe, directory: Path) -> Tokenizer:
    """The tokenizer of a recipe that trains none: the one it names, or that of the model that it begins from."""
    if recipe.tokenizer.path is not None:
        return Tokenizer.load(recipe.tokenizer.path)
    if (directory / FORK_FILE).exists():  # the weights know the tokens of the run that it was forked from
        return Tokenizer.load(directory / TOKENIZER_DIRECTORY)
    assert recipe.starts_from is not None, "the recipe names a tokenizer or a model"
    start = read_start(directory) or StartingModel.find(recipe.starts_from)
    assert start.tokenizer is not None, "a recipe whose model has none names one"
    return start.tokenizer


def _build_text(recipe: Recipe, directory: Path, shards: Path) -> None:
    """Run the shipped build on the recipe's text, and take over from it what the run needs; the tokens come last."""
    check_sources(recipe)
    place = directory / BUILD_DIRECTORY
    named = recipe.tokenizer.path is not None or recipe.starts_from is not None or (directory / FORK_FILE).exists()
    if named:
        tokenizer_at_hand(recipe, directory).save(directory / TOKENIZER_DIRECTORY)
    tokens = TokensSection(
        tokenizer=directory / TOKENIZER_DIRECTORY if named else None,
        vocab_size=recipe.tokenizer.vocab_size,
        allow_smaller=recipe.tokenizer.allow_smaller,
        special_tokens=special_tokens(recipe.stage),
        by="source" if isinstance(recipe.data.text, dict) else "all",
        layout=TextLayout(style="joined", learn=recipe.data.recall_learn),
    )
    data = recipe.data
    build = run_build(
        text_recipe(
            data.text if isinstance(data.text, dict) else data.text or None,
            held_out_fraction=data.held_out_fraction,
            recall_share=data.recall_share,
            recall_source=data.recall_group,
            recall_learn=data.recall_learn,
            tokens=tokens,
        ),
        place,
    )
    report = TextReport.of(build)
    _tell(report)
    Tokenizer.load(place / TOKENIZER).save(directory / TOKENIZER_DIRECTORY)
    with atomic_file(directory / "data.json") as part:
        part.write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    with atomic_file(directory / _HELD_OUT) as part, part.open("w", encoding="utf-8") as file:
        for document in documents_of(build.stages()[HOLD_OUT_STAGE], dropped=True):
            file.write(json.dumps({"id": document.id, "text": document.text, "source": document.source}) + "\n")
    write_checksums(directory, [directory / _HELD_OUT, *(directory / TOKENIZER_DIRECTORY).iterdir()])
    parts = place / TOKENS
    if data.recall_group and data.recall_group not in open_groups(parts):
        say(
            f"no document is in '{data.recall_group}', and stages mix without it: recall_share = {data.recall_share:g} "
            "chose none of 1,000 bytes or more; raise it, or give more text"
        )
    (parts if isinstance(recipe.data.text, dict) else open_groups(parts)["all"].directory).rename(shards)


def _open_text(shards: Path) -> dict[str, TokenShards]:
    """The tokens of text by group; of text without groups, ``all``."""
    return open_groups(shards) if (shards / GROUPS).exists() else {"all": TokenShards.open(shards)}


def _check_files(directory: Path) -> None:
    changed = changed_files(directory)
    if changed:
        raise UserError(
            f"{', '.join(str(directory / name) for name in changed)} is missing, or not what this run wrote there. "
            f"Bring it back from a copy; or remove {directory / TOKENS_DIRECTORY}, and the same command reads the "
            "documents again, and goes on if they are what they were."
        )


def _tell(report: TextReport) -> None:
    say(
        f"documents: {report.train_documents + report.held_out_documents:,}, {report.train_bytes / 1e6:.1f} MB to "
        f"train on, {report.held_out_bytes / 1e6:.2f} MB held out; {report.duplicates} duplicates dropped, "
        f"{_total(report.rejects)} set aside"
    )


def _total(rejects: Mapping[str, int]) -> str:
    if not rejects:
        return "none"
    return f"{sum(rejects.values())} ({', '.join(f'{count} {reason}' for reason, count in rejects.items())})"
