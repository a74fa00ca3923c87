"""Documents by a value in their metadata: each kind of value, lists, what is missing, bad settings, and in a build."""

import json
from pathlib import Path
from typing import Any

import pytest

from leyden.core.errors import UserError
from leyden.data.builds import BuildRecipe, run_build
from leyden.data.documents import Document, Documents
from leyden.data.rules import Metadata

VALUES: list[Any] = ["mit", "gpl", ["gpl", "mit"], ["bsd"], [], None, 3, 3.5, -1, True, {"a": 1}]


def kept(**settings: Any) -> list[int]:
    """Which of the documents with each of VALUES, and then one without any metadata, a stage keeps."""
    documents = Documents.of(
        [
            *(Document(str(n), "text", "web", metadata={"x": value}) for n, value in enumerate(VALUES)),
            Document("last", "text", "web"),
        ]
    )
    judged = Metadata(key="x", **settings).apply(documents, "", Path())
    assert set(judged.column("reason")) <= {None, "metadata: x"}
    return [row for row, reason in enumerate(judged.column("reason")) if reason is None]


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"values": ["mit"]}, [0, 2, 4, 5, 11]),
        ({"values": ["mit"], "missing": "drop"}, [0, 2]),
        ({"except_values": ["gpl"]}, [0, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ({"values": ["mit"], "except_values": ["gpl"]}, [0, 4, 5, 11]),
        ({"values": ["3", "true"], "missing": "drop"}, [6, 9]),
        ({"least": 3}, [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11]),
        ({"least": 3, "missing": "drop"}, [6, 7]),
        ({"most": 3, "missing": "drop"}, [6, 8]),
        ({"least": 0, "most": 3, "missing": "drop"}, [6]),
    ],
)
def test_what_is_kept(settings: dict[str, Any], rows: list[int]) -> None:
    assert kept(**settings) == rows


def test_the_detail_says_what_was_found_and_what_is_allowed() -> None:
    documents = Documents.of([Document("a", "text", "web", metadata={"x": value}) for value in ("gpl", 7)])
    for settings, details in (
        ({"values": ["mit", "bsd"]}, ["gpl; mit, bsd is allowed", "7; mit, bsd is allowed"]),
        ({"except_values": ["gpl"]}, ["gpl is excluded", None]),
        ({"least": 8, "most": 9}, [None, "7; at least 8 and at most 9 is allowed"]),
    ):
        assert Metadata(key="x", **settings).apply(documents, "", Path()).column("detail") == details


def test_other_sources_are_left_alone() -> None:
    documents = Documents.of([Document("a", "text", source, metadata={"x": 1}) for source in ("web", "code")])
    stage = Metadata(key="x", least=2, except_sources=("code",))
    assert stage.apply(documents, "", Path()).column("reason") == ["metadata: x", None]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"key": "x"}, "give values, except_values, least or most"),
        ({"key": "", "least": 1}, "key"),
        ({"key": "x", "least": 2, "most": 1}, r"least \(2\) is larger than most \(1\)"),
        ({"key": "x", "values": ["a"], "missing": "ask"}, "missing"),
    ],
)
def test_bad_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Metadata.parse({"kind": "metadata", **settings}, "test")


def test_columns_of_a_file_are_judged_in_a_build(tmp_path: Path) -> None:
    rows = [{"text": f"document {stars}", "stars": stars} for stars in range(5)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "build": {"workers": 1},
        "source": [{"name": "code", "paths": [str(tmp_path / "a.jsonl")]}],
        "stage": [{"kind": "metadata", "key": "stars", "least": 3}],
    }
    build = run_build(BuildRecipe.parse(recipe, "test"), tmp_path / "build")
    assert [text for batch in build.stages()[-1].read() for text in batch.texts()] == ["document 3", "document 4"]
