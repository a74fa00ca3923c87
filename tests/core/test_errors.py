"""The near name."""

from leyden.core.errors import suggest


def test_the_nearest_name_is_suggested() -> None:
    assert suggest("quickstrat", ["quickstart", "quick", "start"]) == "; did you mean 'quickstart'?"


def test_with_none_near_all_are_listed_in_order() -> None:
    assert suggest("x", ["b", "a"]) == "; allowed: a, b"


def test_with_none_allowed_nothing_is_added() -> None:
    assert suggest("x", []) == ""
