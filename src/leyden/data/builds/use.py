"""The commands of ``leyden data``: a build with its report, and looking at one in a terminal."""

import itertools
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from leyden.core.config import dump_toml
from leyden.core.errors import Interrupted, UserError
from leyden.core.files import atomic_file
from leyden.core.lock import folder_lock
from leyden.core.log import say
from leyden.core.printable import printable
from leyden.data.builds.directory import Build
from leyden.data.builds.inspect import Span, clusters, compare, left_at, story, text_of
from leyden.data.builds.recipe import BuildRecipe
from leyden.data.builds.reference import page, stage_tables, summaries
from leyden.data.builds.rejects import reading_line
from leyden.data.builds.report import funnel, write_report
from leyden.data.builds.run import DOING, carry_out
from leyden.data.builds.tokens import GROUPS
from leyden.data.engine import DataEngine

if TYPE_CHECKING:
    from leyden.data.label.language_model import OpenModel

_SHOWN_LINES, _SHOWN_MEMBERS, _SHOWN_CHARACTERS = 24, 5, 1200
_out = Console(highlight=False)
if not _out.is_terminal:
    _out.width = 1 << 16  # nothing is folded in a file or a pipe


def build_and_report(recipe: BuildRecipe, directory: Path, open_model: "OpenModel | None" = None) -> Path:
    """Run what is left to do of a build, then write its report.

    Args:
        recipe: of the build.
        directory: of the build.
        open_model: opens local models, for stages that ask one.

    Returns:
        The path of the report's page.

    Raises:
        UserError: see :func:`leyden.data.builds.run_build`.
        Interrupted: Ctrl-C or SIGTERM; what was finished is kept.
    """
    with folder_lock(directory, DOING), _interruptible(directory):
        _refuse_runs(directory)
        with atomic_file(directory / "recipe.toml") as part:
            part.write_text(dump_toml(recipe.model_dump(mode="json")), encoding="utf-8")
        carry_out(recipe, directory, open_model)
        path = write_report(recipe, directory, DataEngine(recipe.build.workers or os.cpu_count() or 1))
    say(f"report: {path}")
    return path


def _refuse_runs(directory: Path) -> None:
    """A build in the directory of a run would write over the run's recipe."""
    if any((directory / name).exists() for name in ("checkpoints", "metrics.jsonl", "final")):
        raise UserError(f"{directory} holds a run of `leyden run`; give the build another --dir.")


@contextmanager
def _interruptible(directory: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the build between shards; files of the shard at hand are not there, or whole."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped; every finished shard is kept in {directory}. The same command goes on from there."
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def show_stats(directory: Path, *, as_json: bool) -> None:
    """Print the funnel and the corpus's numbers.

    Raises:
        UserError: there is no build in ``directory``.
    """
    build = Build.open(directory)
    path = directory / "report" / "report.json"
    if not path.exists():
        raise UserError(f"{directory} has no report yet; run it again: {build.command()}")
    report = path.read_text(encoding="utf-8")
    if as_json:
        print(report)
        return
    rows = funnel(build)
    _out.print(_safe(reading_line(build.stages()[0])), soft_wrap=True)
    table = Table("stage", "documents in", "kept", "MB in", "MB kept", "MB/s a core", "commonest reasons")
    for row in rows:
        given, kept = row.counts.given, row.counts.kept
        why = ", ".join(f"{reason} {documents:,}" for reason, documents, _ in row.reasons[:3])
        table.add_row(
            row.name, f"{given.documents:,}", f"{kept.documents:,}", f"{given.bytes / 1e6:,.1f}",
            f"{kept.bytes / 1e6:,.1f}", f"{row.rate / 1e6:,.1f}", _safe(why),
        )  # fmt: skip
    _out.print(table)
    facts = json.loads(report)["kept"]
    for name in ("source", "language"):
        table = Table(name, "documents", "MB")
        for value, size in sorted(facts["bytes"][name].items(), key=lambda item: -item[1]):
            label = _safe(value or "unknown")
            table.add_row(label, f"{facts['documents'][name][value]:,}", f"{size / 1e6:,.1f}")
        _out.print(table)
    if (directory / "tokens" / GROUPS).exists():
        table = Table("tokens of", "documents", "tokens")
        for name, group in json.loads((directory / "tokens" / GROUPS).read_text(encoding="utf-8"))["groups"].items():
            table.add_row(_safe(name), f"{group['documents']:,}", f"{group['tokens']:,}")
        _out.print(table)


def show_story(directory: Path, id: str) -> None:
    """Print what each stage did to one document, its changes highlighted, and its text at the end."""
    steps = story(Build.open(directory), id)
    for step in steps:
        verdict = "[red]dropped[/]" if step.dropped else "[green]kept[/]"
        why = ""
        if step.dropped:
            why = f": {step.documents.column('reason')[0]}"
            detail = step.documents.column("detail")[0]
            why += f" ({detail})" if detail else ""
        _out.print(f"[bold]{step.stage}[/] {verdict}{_safe(why)}")
        _print_changes(step.changes)
    last = steps[-1].documents
    for name, value in last.column("scores")[0] or ():
        _out.print(f"score {_safe(name)}: {value:.4g}")
    _out.print(_safe("\n".join(last.texts()[0].splitlines()[:_SHOWN_LINES]), lines=True))


def _safe(text: str, *, lines: bool = False) -> str:
    """What others wrote, to stand between marks of colour."""
    return escape(printable(text, lines=lines))


def show_dropped(directory: Path, stage: str | None, reason: str | None, limit: int) -> None:
    """Print documents that were dropped, each with its stage, reason and first lines."""
    shown = 0
    for name, batch in left_at(Build.open(directory), stage, reason):
        rows = zip(batch.column("id"), batch.column("reason"), batch.column("detail"), batch.texts(), strict=True)
        for id, why, detail, text in itertools.islice(rows, limit - shown):
            _out.print(f"[bold]{_safe(id)}[/] dropped by {name}: [red]{_safe(why)}[/] {_safe(detail or '')}")
            _out.print(f"  [dim]{_safe(' / '.join(text.splitlines()[:3])[:300])}[/]")
            shown += 1
        if shown >= limit:
            break
    if not shown:
        _out.print("No document was dropped so.")


def show_clusters(directory: Path, limit: int) -> None:
    """Print clusters of duplicates, the largest first: who survived, and what sets the first of the others apart."""
    build = Build.open(directory)
    found = clusters(build)
    for cluster in found[:limit]:
        _out.print(f"[bold]{cluster.stage}[/]: {len(cluster.others)} dropped, [green]{_safe(cluster.survivor)}[/] kept")
        for id, similarity in cluster.others[:_SHOWN_MEMBERS]:
            _out.print(f"  [red]{_safe(id)}[/]{'' if similarity is None else f'  similarity {similarity:.3f}'}")
        if len(cluster.others) > _SHOWN_MEMBERS:
            _out.print(f"  and {len(cluster.others) - _SHOWN_MEMBERS} more")
        first, second = (text_of(build, cluster.stage, id) for id in (cluster.survivor, cluster.others[0][0]))
        _print_changes(compare(first, second) if second else ())
    _out.print(f"{len(found):,} clusters" if found else "No stage of this build has found duplicates.")


def _print_changes(spans: Sequence[Span]) -> None:
    """Words that went in red, new ones in green; cut where there are too many."""
    line = Text("  ")
    for span in spans:
        line.append(printable(span.text.replace("\n", "⏎ ")), {"same": "dim", "gone": "red", "new": "green"}[span.kind])
    if len(line) > _SHOWN_CHARACTERS:
        line.truncate(_SHOWN_CHARACTERS, overflow="ellipsis")
    if spans:
        _out.print(line, soft_wrap=True)


def show_stages(kind: str | None, *, as_page: bool) -> None:
    """Print the kinds of stages, the keys of one kind, or the whole page of keys.

    Raises:
        UserError: there is no such kind.
    """
    if as_page:
        print(page(), end="")
        return
    if kind is None:
        table = Table("kind", "what it does")
        for name, about in summaries().items():
            table.add_row(name, escape(about))
        _out.print(table)
        _out.print("leyden data stages KIND prints the keys of one.", markup=False)
        return
    for found in stage_tables(kind):
        _out.print(f"[bold]{escape(found.title)}[/]")
        _out.print(escape(found.about))
        table = Table("key", "type", "default", "meaning")
        for key in found.keys:
            table.add_row(*(escape(cell.replace("`", "")) for cell in (key.name, key.kind, key.default, key.meaning)))
        _out.print(table)
