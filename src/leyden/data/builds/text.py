"""The shipped build of text that a run reads itself: three stages (read, exact deduplication, hold out), and tokens."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leyden.core.config import read_toml
from leyden.data.builds.directory import Build, DocumentTally, StageDirectory
from leyden.data.builds.recipe import BuildRecipe, TokensSection
from leyden.data.builds.rejects import not_read, reject_lines
from leyden.data.documents import Document
from leyden.data.hold_out import HELD_OUT

TEXT_BUILD = Path(__file__).with_name("text.toml")

HOLD_OUT_STAGE = 2
"""Which stage of the build drops the documents that are held out."""


def text_recipe(
    paths: Sequence[Path] | Mapping[str, Sequence[Path]] | None,
    *,
    held_out_fraction: float | None,
    recall_share: float = 0.0,
    recall_source: str = "",
    recall_learn: str = "all",
    tokens: TokensSection | None = None,
) -> BuildRecipe:
    """The recipe of the build in ``text.toml`` on some text.

    Args:
        paths: files and folders; by name where there are several sources; None: the source of the running Python's
            standard library.
        held_out_fraction: the share of the documents that is held out; None: nothing is.
        recall_share: the share of the documents that the stage ``recall`` plants questions in.
        recall_source: of what that makes, which then stays beside the originals; empty: it takes their place.
        recall_learn: what of it is learned, ``"all"`` or ``"answers"``.
        tokens: what becomes of the documents that are left; None: nothing.

    Raises:
        UserError: the fraction is not between 0 and 1.
    """
    data = read_toml(TEXT_BUILD)
    if paths is not None:
        named = paths if isinstance(paths, Mapping) else {data["source"][0]["name"]: paths}
        of_all = data["source"][0]
        data["source"] = [of_all | {"name": name, "paths": [str(p) for p in those]} for name, those in named.items()]
    if held_out_fraction is None:
        data["stage"] = [stage for stage in data["stage"] if stage["kind"] != "hold_out"]
    else:
        data["stage"][-1]["share"] = held_out_fraction
    if recall_share:
        added = {"mode": "add", "source": recall_source} if recall_source else {}
        data["stage"].append({"kind": "recall", "share": recall_share, "learn": recall_learn, **added})
    return BuildRecipe.parse(data, TEXT_BUILD.name).model_copy(update={"tokens": tokens})


def documents_of(stage: StageDirectory, *, dropped: bool = False) -> Iterator[Document]:
    """The documents that a stage kept or dropped, one by one.

    Raises:
        UserError: a file is damaged.
    """
    for batch in stage.read(dropped=dropped):
        yield from batch


@dataclass(frozen=True)
class TextReport:
    """What the build of a run's text came to; sizes are in UTF-8 bytes.

    Attributes:
        train_documents, train_bytes: what is trained on.
        held_out_documents, held_out_bytes: what is only evaluated on.
        duplicates: documents that were dropped because another has the same text.
        rejects: how many files, rows and lines were not read or set aside, by reason.
        rejected: each of those, with its file, place, reason and detail.
    """

    train_documents: int
    train_bytes: int
    held_out_documents: int
    held_out_bytes: int
    duplicates: int
    rejects: dict[str, int]
    rejected: list[dict[str, str]]

    @classmethod
    def of(cls, build: Build) -> "TextReport":
        """Of a build by :func:`text_recipe` with documents held out."""
        read, exact, hold_out = build.stages()[: HOLD_OUT_STAGE + 1]
        held_out = hold_out.total()
        left = held_out.dropped.get(HELD_OUT, DocumentTally())
        rejects = not_read(read) + Counter(read.total().rejected)
        return cls(
            train_documents=held_out.kept.documents,
            train_bytes=held_out.kept.bytes,
            held_out_documents=left.documents,
            held_out_bytes=left.bytes,
            duplicates=sum(tally.documents for tally in exact.total().dropped.values()),
            rejects=dict(rejects.most_common()),
            rejected=list(reject_lines(read)),
        )
