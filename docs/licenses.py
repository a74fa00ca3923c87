"""Writes docs/licenses.md: what Leyden is installed with, and under which licenses, as the packages themselves say.

Run it in an environment that has what requirements.lock pins: ``make licenses``.
"""

import importlib.metadata
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licenses.md"
_LONGEST = 60
"""Some packages have the text of their license where its name belongs."""


def pinned() -> dict[str, str]:
    """The packages of requirements.lock and their versions."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    found = (re.match(r"([\w.-]+)==([^;\s]+)", line) for line in lines)
    return {one[1]: one[2] for one in found if one is not None}


def license_of(package: str) -> str:
    """By the package's expression, else its classifiers, else its field, else the first line of its license file."""
    metadata = importlib.metadata.metadata(package)
    expression = metadata.get("License-Expression")
    named = [one.rpartition("::")[2].strip() for one in metadata.get_all("Classifier") or [] if "License ::" in one]
    field = " ".join((metadata.get("License") or "").partition("Copyright")[0].split())
    if expression:
        return expression
    if named:
        return "; ".join(named)
    if field and len(field) <= _LONGEST:
        return field
    files = importlib.metadata.files(package) or []
    texts = [field] if field else [file.read_text() for file in files if _is_text(file)]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    return lines[0][:_LONGEST] if lines else "not said by the package"


def _is_text(file: importlib.metadata.PackagePath) -> bool:
    return file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING"))


def page() -> str:
    """The page of documentation."""
    licenses = {package: license_of(package) for package in pinned()}
    kinds = ", ".join(f"{one} ({count})" for one, count in Counter(licenses.values()).most_common(6))
    rows = [f"| {package} | {version} | {licenses[package]} |" for package, version in pinned().items()]
    return "\n".join(
        [
            "# Licenses",
            "",
            "Leyden is licensed under the Apache License 2.0 ([LICENSE](../LICENSE)). This page lists the packages",
            "that [requirements.lock](../requirements.lock) pins, which are installed with it and are no part of it,",
            "with the license that each names in its metadata. [licenses.py](licenses.py) writes the page",
            "(`make licenses`), and a test compares it with the lock.",
            "",
            f"The most frequent are {kinds}.",
            "",
            "| package | version | license |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
