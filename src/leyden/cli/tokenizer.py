"""``leyden tokenizer``: train one, judge one, or use one."""

import functools
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leyden.core.errors import UserError

if TYPE_CHECKING:
    from leyden.data.documents import Document, Reject
    from leyden.tokenizer.survey import TokenSurvey
    from leyden.tokenizer.words import WordCounts, WordGroup

app = typer.Typer(help="Train a byte-level BPE tokenizer, judge one, or encode text with one.", no_args_is_help=True)

_SHARD_BYTES = 16 << 20
_ALONE_BYTES = 64 << 20
"""Less text is read by this process alone: starting others costs seconds."""

_Text = Annotated[list[Path], typer.Argument(help="Files or folders of documents, or builds of `leyden data build`.")]
_Workers = Annotated[int, typer.Option(min=0, help="Processes that read text; 0: one for each core.")]


@app.command()
def train(
    text: _Text,
    directory: Annotated[Path, typer.Option("--dir", help="Where to write tokenizer.json and its configuration.")],
    vocab_size: Annotated[int, typer.Option(min=1, help="Tokens in all, the 256 bytes and the special ones counted.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LANG=BYTES",
            help="Give a language's words more weight until it comes to so many bytes per token; may be repeated.",
            show_default=False,
        ),
    ] = None,
    special: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKEN", help="A further special token; may be repeated.", show_default=False),
    ] = None,
    max_words: Annotated[
        int,
        typer.Option(min=1000, help="Distinct words held in memory (about 200 bytes each); the rarest are dropped."),
    ] = 2_000_000,
    workers: _Workers = 0,
) -> None:
    """Train a tokenizer on documents, and report on it in --dir/report."""
    from leyden.tokenizer import Tokenizer
    from leyden.tokenizer.directory import refuse_to_replace_others
    from leyden.tokenizer.report import write_report
    from leyden.tokenizer.survey import TokenSurvey
    from leyden.tokenizer.words import WordCounts

    refuse_to_replace_others(directory)
    targets = dict(map(_target, target or ()))
    counts = WordCounts(max_words)
    for some in _over_shards("counting words", functools.partial(_count, max_words), text, workers):
        counts.update(some)
    tokenizer, training = Tokenizer.from_words(counts, vocab_size=vocab_size, targets=targets, special=special or ())
    tokenizer.save(directory)
    survey = TokenSurvey.of_words(tokenizer, counts)
    _show(survey)
    _show_weights(write_report(directory / "report", survey, training, counts)["training"])
    print(f"{directory} holds a tokenizer of {tokenizer.vocab_size} tokens")


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="A directory with tokenizer.json, whoever made it.")],
    text: _Text,
    output: Annotated[
        Path | None, typer.Option(help="Where to write report.json and index.html.", show_default=False)
    ] = None,
    workers: _Workers = 0,
) -> None:
    """Judge a tokenizer by documents: compression and fertility by language and domain, unused and longest tokens."""
    from leyden.tokenizer import Tokenizer
    from leyden.tokenizer.report import write_report
    from leyden.tokenizer.survey import TokenSurvey

    survey = TokenSurvey(Tokenizer.load(directory))
    for sizes, uses in _over_shards("encoding", functools.partial(_encode, directory), text, workers):
        survey.update(sizes, uses)
    _show(survey)
    if output is not None:
        write_report(output, survey)
        print(f"{output / 'index.html'} holds the report")


@app.command()
def encode(
    directory: Annotated[Path, typer.Argument(help="A directory with tokenizer.json.")],
    text: Annotated[str | None, typer.Argument(help="What to encode; standard input where left out.")] = None,
) -> None:
    """Print the ids of a text, one line of numbers."""
    from leyden.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(directory)
    print(*tokenizer.encode(sys.stdin.read() if text is None else text))


def _over_shards(title: str, task: Any, paths: list[Path], workers: int) -> Iterator[Any]:
    """What ``task`` makes of each shard of ``paths``; with a bar, and at the end what was not read, with reasons.

    Args:
        title: of the bar.
        task: gives for a shard its result, and how much of it was set aside, by reason.
        paths: files, folders, builds.
        workers: processes; 0: one a core, unless there is little to read.
    """
    from leyden.core.log import progress, say
    from leyden.data.builds.rejects import by_reason
    from leyden.data.engine import DataEngine

    skipped: list[Reject] = []
    shards = [shard for path in paths for shard in _shards(path, skipped)]
    sizes = [size for size, *_ in shards]
    if not shards:
        raise UserError(f"There is nothing to read in {', '.join(map(str, paths))}: no file of a kind that is read.")
    num_workers = 1 if sum(sizes) < _ALONE_BYTES and not workers else workers or os.cpu_count() or 1
    with progress(title, sum(sizes), "bytes") as bar:
        aside: Counter[str] = Counter()
        for index, (result, rejects) in DataEngine(num_workers).map(task, shards):
            bar.advance(sizes[index])
            aside += rejects
            yield result
    for reasons, what in ((Counter(reject.reason for reject in skipped), "not read"), (aside, "set aside")):
        if reasons:
            say(f"{what}: {reasons.total():,} ({by_reason(reasons)})")


def _shards(path: Path, skipped: "list[Reject]") -> list[tuple[int, str | None, Any]]:
    """Bytes, domain (None: as documents say) and a list of pieces or a Parquet file; and what is not read."""
    from leyden.data.readers import SourceSettings, plan_shards

    if (path / "stages").is_dir():
        from leyden.data.builds import Build

        stage = Build.whole(path).stages()[-1]
        return [(file.stat().st_size, None, file) for file in stage.files()]
    shards = plan_shards(SourceSettings(name="text", paths=(str(path),)), _SHARD_BYTES, skipped)
    return [(sum(piece.num_bytes for piece in shard), path.name or str(path), shard) for shard in shards]


def _documents(shard: tuple[int, str | None, Any], rejects: "list[Reject]") -> "Iterator[tuple[str, WordGroup]]":
    """Every text of a shard, with its group."""
    from leyden.data.parquet import read_batches
    from leyden.data.readers import ReadSettings, read_piece
    from leyden.tokenizer.words import WordGroup

    _, domain, what = shard
    if isinstance(what, Path):
        for batch in read_batches(what):
            for document, text in zip(batch, batch.texts(), strict=True):
                yield text, WordGroup(_language(document, text), document.source)
        return
    for piece in what:
        for document in read_piece(piece, ReadSettings(metadata=("programming_language",)), rejects):
            text = document.text or "\n\n".join(message.content for message in document.messages)
            yield text, WordGroup(_language(document, text), domain or "")


def _language(document: "Document", text: str) -> str:
    """Of a program its programming language, else as the document says, else as its text looks."""
    from leyden.data.rules.language import Language

    named = document.metadata.get("programming_language") or document.language
    return named or Language().identify(text)[0] or ""  # pyright: ignore[reportCallIssue]


def _count(max_words: int, shard: tuple[int, str | None, Any]) -> "tuple[WordCounts, Counter[str]]":
    """The words of a shard, and how much of it was set aside, by reason."""
    from leyden.tokenizer.words import WordCounts

    rejects: list[Reject] = []
    counts = WordCounts(max_words)
    for text, group in _documents(shard, rejects):
        counts.add(text, group)
    return counts, _reasons(rejects)


def _encode(directory: Path, shard: tuple[int, str | None, Any]) -> tuple[tuple[Any, Any], Counter[str]]:
    """Sizes and uses of tokens of a shard, and how much of it was set aside, by reason."""
    from leyden.tokenizer.survey import TokenSurvey

    rejects: list[Reject] = []
    survey = TokenSurvey(_load(directory))
    for text, group in _documents(shard, rejects):
        survey.add([text], group)
    return (survey.sizes, survey.uses), _reasons(rejects)


def _reasons(rejects: "list[Reject]") -> Counter[str]:
    counts: Counter[str] = Counter()
    for reject in rejects:
        counts[reject.reason] += reject.count
    return counts


@functools.lru_cache(1)
def _load(directory: Path) -> Any:
    from leyden.tokenizer import Tokenizer

    return Tokenizer.load(directory)


def _target(option: str) -> tuple[str, float]:
    language, _, number = option.partition("=")
    try:
        return language.strip(), float(number)
    except ValueError:
        raise UserError(f"--target is LANG=BYTES, as in --target de=4.2; given: {option!r}.") from None


def _show(survey: "TokenSurvey") -> None:
    """Print what the text comes to."""
    from rich.table import Table

    from leyden.core.log import console

    for title, rows in (("language", survey.by_language()), ("domain", survey.by_domain())):
        table = Table(title, "documents", "MB", "tokens", "bytes per token", "tokens per word")
        for name, one in [*list(rows.items())[:20], ("all", survey.total)]:
            table.add_row(
                name or "unknown", f"{one.sizes.num_documents:,}", f"{one.sizes.num_bytes / 1e6:,.2f}",
                f"{one.num_tokens:,}", f"{one.bytes_per_token:.3f}", f"{one.tokens_per_word:.3f}",
            )  # fmt: skip
        console.print(table)
    console.print(f"{len(survey.unused()):,} of {survey.tokenizer.vocab_size:,} tokens are not used.", highlight=False)


def _show_weights(training: dict[str, Any]) -> None:
    """Print how often words were counted, where languages have targets."""
    from leyden.core.log import say

    last = training["rounds"][-1]
    for language, target in training["targets"].items():
        reached, weight = last["bytes_per_token"][language], last["weights"][language]
        missed = "" if reached >= 0.99 * target else ", which is missed"
        say(f"{language}: {reached:.3f} bytes per token at weight {weight:.3g}; the target is {target:g}{missed}")
    if training["largest_undercount"]:
        say(
            f"{training['forgotten_occurrences']:,} occurrences of rare words were forgotten to bound memory; no count "
            f"is more than {training['largest_undercount']:,} too low (--max-words)"
        )
