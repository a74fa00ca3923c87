"""Configurations: what is refused and how it is told, TOML in and out, and --set."""

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from leyden.core.config import Config, dump_toml, override, read_toml
from leyden.core.errors import UserError


class Inner(Config):
    depth: int = Field(default=1, ge=1)
    kind: Literal["round", "square"] = "round"


class Outer(Config):
    name: str
    rate: float = 0.5
    inner: Inner = Inner()
    parts: tuple[Inner, ...] = ()
    extra: Inner | None = None


def refusal(**data: object) -> str:
    with pytest.raises(UserError) as caught:
        Outer.parse({"name": "x", **data}, "box.toml")
    message = str(caught.value)
    assert message.startswith("box.toml: ")
    assert message.endswith((".", "?"))
    assert "\n" not in message
    return message


def test_a_configuration_cannot_change() -> None:
    config = Outer(name="x")
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "y"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("data", "path", "near"),
    [
        ({"ratte": 1.0}, "ratte", "rate"),
        ({"inner": {"dept": 2}}, "inner.dept", "depth"),
        ({"parts": [{}, {"knd": "round"}]}, "parts.1.knd", "kind"),
        ({"extra": {"depht": 2}}, "extra.depht", "depth"),
    ],
)
def test_an_unknown_key_is_told_with_the_near_name(data: dict[str, object], path: str, near: str) -> None:
    assert f"unknown key '{path}'; did you mean '{near}'?" in refusal(**data)


def test_an_unknown_key_near_nothing_is_told_with_all_names() -> None:
    assert "unknown key 'zzz'; allowed: extra, inner, name, parts, rate" in refusal(zzz=1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"rate": "fast"}, ["'rate'", "number", "given: 'fast'"]),
        ({"inner": {"depth": 0}}, ["'inner.depth'", "greater than or equal to 1", "given: 0"]),
        ({"inner": {"kind": "rund"}}, ["'inner.kind'", "'round' or 'square'", "given: 'rund'"]),
        ({"rate": float("nan")}, ["'rate'", "finite", "given: nan"]),
    ],
)
def test_a_bad_value_is_told_with_what_is_allowed(data: dict[str, object], says: list[str]) -> None:
    message = refusal(**data)
    assert all(part in message for part in says), message


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Outer.parse({"rate": "fast", "inner": {"depth": 0}}, "box.toml")
    assert str(caught.value).count(";") == 2
    assert "'name' is required" in str(caught.value)


def test_a_missing_key_is_told_with_what_it_may_be() -> None:
    class Part(Config):
        shape: Literal["round", "square"] | None

    class Whole(Config):
        parts: tuple[Part, ...]

    with pytest.raises(UserError, match=r"'parts\.0\.shape' is required; allowed: round, square\."):
        Whole.parse({"parts": [{}]}, "box.toml")


def test_toml_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml does not exist; give the path"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("a = 1\nb = = 2\n")
    with pytest.raises(UserError, match=r"broken\.toml is not a TOML file: .*line 2"):
        read_toml(broken)
    broken.write_bytes(b"a = '\xff'")
    with pytest.raises(UserError, match=r"is not a TOML file: .*utf-8"):
        read_toml(broken)


_text = st.text(st.sampled_from("ab \"\\'\n\r\t\0\x7fé☃"), max_size=8)
_values = st.recursive(
    st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | _text | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc-. ", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text("abcde", min_size=1), _values, max_size=4))
def test_toml_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.toml"
    path.write_text(dump_toml(data), encoding="utf-8", newline="")
    assert read_toml(path) == data


def test_what_is_none_is_left_out_of_toml() -> None:
    assert dump_toml({"a": None, "b": {"c": None}}) == "[b]\n"


TREE = {
    "train": {"seed": 0},
    "stage": [{"name": "first", "lr": 1.0}, {"name": "second", "lr": 2.0}],
    "tags": ["a", "b"],
}


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("train.seed=7", ("train", "seed"), 7),
        ("train.rate=1e-3", ("train", "rate"), 1e-3),
        ("train.on=true", ("train", "on"), True),
        ("train.dtype=bfloat16", ("train", "dtype"), "bfloat16"),
        ('train.dtype="bfloat16"', ("train", "dtype"), "bfloat16"),
        ("train.note=a=b", ("train", "note"), "a=b"),
        ('train.pair=[1, "x"]', ("train", "pair"), [1, "x"]),
        ("new.deep.key=1", ("new", "deep", "key"), 1),
        ("stage.0.lr=3.0", ("stage", 0, "lr"), 3.0),
        ("stage.second.lr=3.0", ("stage", 1, "lr"), 3.0),
        ("tags.1=c", ("tags", 1), "c"),
    ],
)
def test_a_setting_changes_one_value(setting: str, path: tuple[str | int, ...], value: object) -> None:
    node: object = override(TREE, [setting])
    for part in path:
        node = node[part]  # pyright: ignore[reportIndexIssue]
    assert node == value
    assert type(node) is type(value)


def test_settings_leave_the_original_alone_and_the_later_wins() -> None:
    before = repr(TREE)
    assert override(TREE, ["stage.0.lr=5", "stage.first.lr=6"])["stage"][0]["lr"] == 6
    assert repr(TREE) == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.seed", r"--set train\.seed: expected path=value"),
        ("=3", "expected path=value"),
        ("train.seed.low=1", "'low' lies inside a plain value"),
        ("train.seed.low.est=1", "'low' lies inside a plain value"),
        ("stage.2.lr=1", r"no item '2' among 2; allowed: first, second"),
        ("stage.secnd.lr=1", "no item 'secnd' among 2; did you mean 'second'"),
        ("stage.-1.lr=1", "no item '-1' among 2"),
        ("tags.x=1", "no item 'x' among 2"),
    ],
)
def test_a_setting_that_reaches_nothing_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(TREE, [setting])
