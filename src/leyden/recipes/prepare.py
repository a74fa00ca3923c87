"""From documents to tokens, once: what a run directory holds already is not made again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import say
from leyden.data import Corpus, TokenShards, build_corpus, write_shards
from leyden.data.build.tokens import held_out_texts, read_tokens
from leyden.recipes.schema import Recipe
from leyden.tokenizer import Tokenizer

TOKENS_DIRECTORY = "data"
"""Of a run on ``text``; once it is there, the documents have been read and the tokenizer trained."""


def has_begun(directory: Path) -> bool:
    """Whether a run has made something there that belongs to its recipe: tokens, or a checkpoint."""
    return any((directory / name).exists() for name in (TOKENS_DIRECTORY, "checkpoints"))


@dataclass(frozen=True)
class Prepared:
    """What training and evaluation need of the data.

    Attributes:
        tokenizer: the run's.
        shards: tokens of the documents to train on, by group: ``all``, or those of a data build.
        held_out: texts of the documents to evaluate on.
    """

    tokenizer: Tokenizer
    shards: Mapping[str, TokenShards]
    held_out: tuple[str, ...]


def prepare(recipe: Recipe, directory: Path) -> None:
    """Read the documents, hold some out, train or load the tokenizer, and tokenise.

    Writes ``data.json`` (what was read), ``held_out.jsonl``, ``tokenizer/`` and ``data/`` into ``directory``; where
    the last of them exists, nothing is left to do. Of several ranks one does this, and all read it afterwards.

    Raises:
        UserError: no documents, a vocabulary larger than they support, or a data build without tokens.
    """
    if recipe.data.build is not None:
        _mark_build(recipe.data.build, directory)
        return
    shards = directory / TOKENS_DIRECTORY
    if not shards.exists():
        corpus = build_corpus(recipe.data.text or None, held_out_fraction=recipe.data.held_out_fraction)
        _tell(corpus)
        trained = _tokenizer(recipe, corpus)
        trained.save(directory / "tokenizer")
        _write_corpus(corpus, directory)
        write_shards(corpus.train, trained, shards)


def read_prepared(recipe: Recipe, directory: Path) -> Prepared:
    """What :func:`prepare` left.

    Raises:
        UserError: it is not there.
    """
    if recipe.data.build is not None:
        tokens = read_tokens(recipe.data.build)
        return Prepared(Tokenizer.load(tokens.tokenizer), tokens.groups, held_out_texts(recipe.data.build))
    shards = directory / TOKENS_DIRECTORY
    if not shards.exists():
        raise UserError(
            f"{shards} is not there for this rank; the directory of a run must be the same one for all ranks, on a "
            "file system that all machines share."
        )
    lines = (directory / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = tuple(json.loads(line)["text"] for line in lines)
    return Prepared(Tokenizer.load(directory / "tokenizer"), {"all": TokenShards.open(shards)}, held_out)


def _mark_build(build: Path, directory: Path) -> None:
    """``build.json`` of the run names the tokens of a data build, so that it resumes on no others."""
    tokens = read_tokens(build)
    prints = {group: shards.fingerprint for group, shards in tokens.groups.items()}
    mark = directory / "build.json"
    if has_begun(directory) and mark.exists() and json.loads(mark.read_text(encoding="utf-8")) != prints:
        raise UserError(
            f"The build {build} has other tokens than those that {directory} began with; give another --dir, or bring "
            "the build back to what it was."
        )
    with atomic_file(mark) as part:
        part.write_text(json.dumps(prints), encoding="utf-8")
    with atomic_file(directory / "data.json") as part:
        part.write_text(json.dumps(tokens.facts(), indent=1), encoding="utf-8")


def _tokenizer(recipe: Recipe, corpus: Corpus) -> Tokenizer:
    if recipe.tokenizer.path is not None:
        return Tokenizer.load(recipe.tokenizer.path)
    wanted = recipe.tokenizer.vocab_size
    texts = (document.text for document in corpus.train)
    tokenizer = Tokenizer.train(texts, vocab_size=wanted, allow_smaller=recipe.tokenizer.allow_smaller)
    if tokenizer.vocab_size < wanted:
        say(f"the text supports a vocabulary of {tokenizer.vocab_size:,}, not of {wanted:,}")
    return tokenizer


def _write_corpus(corpus: Corpus, directory: Path) -> None:
    with atomic_file(directory / "data.json") as part:
        report = asdict(corpus.report) | {"rejected": [asdict(reject) for reject in corpus.rejects]}
        part.write_text(json.dumps(report, indent=1), encoding="utf-8")
    with atomic_file(directory / "held_out.jsonl") as part, part.open("w", encoding="utf-8") as file:
        for document in corpus.held_out:
            file.write(json.dumps(asdict(document)) + "\n")


def _tell(corpus: Corpus) -> None:
    report = corpus.report
    say(
        f"documents: {report.train_documents + report.held_out_documents:,}, {report.train_bytes / 1e6:.1f} MB to "
        f"train on, {report.held_out_bytes / 1e6:.2f} MB held out; {report.duplicates} duplicates dropped, "
        f"{_total(report.rejects)} set aside"
    )


def _total(rejects: Mapping[str, int]) -> str:
    if not rejects:
        return "none"
    return f"{sum(rejects.values())} ({', '.join(f'{count} {reason}' for reason, count in rejects.items())})"
