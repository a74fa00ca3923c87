"""docs/data-stages.md, and ``leyden data stages``: every key of a data recipe, as the code has it."""

import re
import tomllib
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import TypeAdapter

from leyden.core.errors import UserError
from leyden.data.builds.reference import ReferenceTable, page, sections, stage_tables, summaries
from leyden.data.builds.stages import KINDS, stage_class
from leyden.data.builds.use import show_stages
from leyden.data.sources import FORMATS

DOCS = Path(__file__).parents[3] / "docs"


def tables() -> list[ReferenceTable]:
    return [*sections(), *(table for kind in KINDS for table in stage_tables(kind))]


def test_the_page_is_as_the_code_is() -> None:
    assert (DOCS / "data-stages.md").read_text(encoding="utf-8") == page(), (
        "make the page again: leyden data stages --markdown > docs/data-stages.md"
    )


def test_every_key_of_every_stage_is_there_with_its_default_and_a_meaning() -> None:
    for kind in KINDS:
        table, config = stage_tables(kind)[0], stage_class(kind)
        assert [key.name for key in table.keys] == [name for name in config.model_fields if name != "kind"]
        for key in table.keys:
            field = config.model_fields[key.name]
            assert (key.default == "required") == field.is_required()
            if key.default.startswith("`"):
                value = tomllib.loads(f"value = {key.default.strip('`')}")["value"]
                adapter = TypeAdapter(Annotated[field.annotation, field])
                assert adapter.validate_python(value) == field.get_default()
    assert all(len(key.meaning) > 10 for table in tables() for key in table.keys)
    assert all(len(about) > 10 for about in summaries().values())


def test_every_format_and_every_kind_of_value_is_named() -> None:
    source = next(table for table in sections() if table.title == "[[source]]")
    meaning = next(key.meaning for key in source.keys if key.name == "format")
    assert all(f"`{name}`" in meaning for name in FORMATS)
    kinds = {key.kind.partition(",")[0] for table in tables() for key in table.keys}
    assert not [kind for kind in kinds if re.search("typing|leyden|class|pydantic", kind)]


def test_the_terminal_has_the_same(capsys) -> None:
    show_stages(None, as_page=False)
    told = capsys.readouterr().out
    assert all(kind in told for kind in KINDS)
    show_stages("minhash", as_page=False)
    told = capsys.readouterr().out
    assert re.search("shingle_words +│ integer, at least 1 +│ 5 ", told)
    with pytest.raises(UserError, match="did you mean 'length'"):
        show_stages("lenght", as_page=False)
