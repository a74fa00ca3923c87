"""Every committed result is told of on a page, with its commit; where the code has changed since, the page says so."""

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
ROOMS = {
    "cpu": ("ops", "model", "serve", "train", "data"),
    "cpu-beside": ("ops", "model", "serve", "train", "data"),
    "serve": ("ops", "model", "serve", "train", "data"),
    "serve-beside": ("ops", "model", "serve", "train", "data"),
    "align": ("ops", "model", "serve", "train", "align"),
    "eval": ("ops", "model", "serve", "evaluate"),
    "data": ("data",),
    "planted": ("data",),
    "routers": ("model", "parallel"),
    "traffic": ("model", "parallel"),
}
"""What each result measures."""
CHANGED = "changed since"


def passage(name: str, pages: dict[str, str]) -> str | None:
    """The paragraph that links to a result, its lines joined."""
    for text in pages.values():
        for paragraph in re.split(r"\n\s*\n", text):
            if f"results/{name}.json" in paragraph:
                return " ".join(paragraph.split())
    return None


def fault(name: str, commit: str, passage: str | None, *, changed: bool) -> str | None:
    """What is wrong with how a result is told, or None."""
    if passage is None:
        return f"no page links to benchmarks/results/{name}.json"
    if f"commit {commit[:7]}" not in passage:
        return f"the paragraph that links to {name}.json must say 'commit {commit[:7]}': {passage}"
    if changed and CHANGED not in passage:
        rooms = ", ".join(ROOMS[name])
        return f"{name}.json is of {commit[:7]}, after which {rooms} changed: measure again, or say '{CHANGED}'"
    return None


def has_changed(commit: str, rooms: tuple[str, ...]) -> bool:
    """Whether files of the rooms differ from what they were at ``commit``."""
    paths = [f"src/leyden/{room}" for room in rooms]
    done = subprocess.run(["git", "-C", str(ROOT), "diff", "--quiet", commit, "--", *paths], capture_output=True)
    return done.returncode == 1


def is_known(commit: str) -> bool:
    found = subprocess.run(["git", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True)
    return found.returncode == 0


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_result_is_of_the_code_beside_it_or_the_page_says_otherwise(path: Path):
    commit = json.loads(path.read_text(encoding="utf-8"))["machine"]["commit"].rstrip("+")
    if not is_known(commit):
        pytest.skip(f"this copy of the history has no commit {commit}")
    pages = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    assert fault(path.stem, commit, passage(path.stem, pages), changed=has_changed(commit, ROOMS[path.stem])) is None


def test_what_the_check_finds():
    page = "# Fast\n\nSome text.\n\nThis run ([cpu.json](benchmarks/results/cpu.json)) is of\ncommit 0123456.\n\nMore."
    found = passage("cpu", {"README.md": page})
    assert found is not None and found.startswith("This run")
    assert fault("cpu", "0123456789ab", found, changed=False) is None
    assert "measure again" in (fault("cpu", "0123456789ab", found, changed=True) or "")
    assert fault("cpu", "0123456789ab", found + " The code has changed since.", changed=True) is None
    assert "must say 'commit fedcba9'" in (fault("cpu", "fedcba987654", found, changed=False) or "")
    assert fault("serve", "0123456789ab", passage("serve", {"README.md": page}), changed=False) is not None
    assert has_changed("HEAD~20", ROOMS["cpu"]) or not is_known("HEAD~20")
