"""Filters by web address: lists of domains, addresses and words that a document's URL must not match."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field, model_validator

from leyden.data.documents import Documents
from leyden.data.rules.base import Limit, RuleStage, empty_verdicts
from leyden.data.rules.lists import HashedSet, load, lowered

_LONGEST_NAME = 253
_SEPARATOR = re.compile(r"[\W_]+")


class Urls(RuleStage):
    """Drop documents by their ``url``; those without one are kept. Every list is a file of one entry a line."""

    TITLE: ClassVar[str] = "url"
    kind: Literal["urls"] = "urls"

    domains: Path | None = None
    """Domains; each stands for its subdomains too: ``example.org`` covers ``www.example.org``, not ``anexample.org``.
    Millions of entries are well."""
    urls: Path | None = None
    """Single addresses, whatever their scheme, ``www.``, fragment and final slash."""
    words: Path | None = None
    """Words of which none may be in an address; words are what is between signs: ``/a-b_c.html`` has four."""
    soft_words: Path | None = None
    """Words of which fewer than ``max_soft_words + 1`` different ones may be in it."""
    max_soft_words: int = Field(1, ge=0)
    """As in RefinedWeb's filter (Penedo et al. 2023, appendix G.1), where two are enough to drop."""
    parts: Path | None = None
    """Strings that may be nowhere in it, even inside words or across signs."""

    @model_validator(mode="after")
    def _some_list(self) -> "Urls":
        if not self.files():
            raise ValueError("give at least one list: domains, urls, words, soft_words or parts")
        return self

    def files(self) -> tuple[Path, ...]:
        """The lists."""
        return tuple(path for path in (self.domains, self.urls, self.words, self.soft_words, self.parts) if path)

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Drop what a list names; the detail says which entry."""
        urls = documents.column("url")
        rows = np.array([row for row in np.flatnonzero(self.chosen(documents)) if urls[row]], np.int64)
        reasons, details = empty_verdicts(len(documents))
        given = [urls[row].strip() for row in rows]
        if given:
            self.judge(self._url_limits(given), rows, reasons, details)
        return documents.drop(reasons, details)

    def _url_limits(self, urls: Sequence[str]) -> list[Limit]:
        limits = []
        if self.domains:
            limits.append(_limit("domain", _listed(load(self.domains, _domains), map(parent_domains, urls))))
        if self.urls:
            limits.append(_limit("address", _listed(load(self.urls, _addresses), [[plain_url(url)] for url in urls])))
        words = [set(_SEPARATOR.split(url.lower())) for url in urls]
        if self.words:
            listed = load(self.words, lowered)
            limits.append(_limit("word", [sorted(listed & found) for found in words]))
        if self.soft_words:
            listed = load(self.soft_words, lowered)
            limits.append(_limit("soft words", [sorted(listed & found) for found in words], self.max_soft_words))
        if self.parts:
            parts = load(self.parts, _parts)
            solid = [_SEPARATOR.sub("", url.lower()) for url in urls]
            limits.append(_limit("part", [[part for part in parts if part in url] for url in solid]))
        return limits


def _limit(name: str, found: Sequence[Sequence[str]], most: int = 0) -> Limit:
    numbers = np.array([len(entries) for entries in found], float)
    return Limit(name, numbers, most=most, found=[", ".join(entries[:5]) for entries in found])


def host(url: str) -> str:
    """The host of an address in lower case and ASCII (IDNA), or nothing; a scheme may lack.

    One that is longer than a name of the domain name system can be (RFC 1035) is none.
    """
    try:
        name = urlsplit(url if "//" in url else "//" + url).hostname or ""
    except ValueError:
        return ""
    name = name.rstrip(".")
    if len(name) > _LONGEST_NAME:
        return ""
    try:
        return name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        return name


def parent_domains(url: str) -> list[str]:
    """The host of an address and all domains that it is in: ``a.b.org``, ``b.org``, ``org``."""
    labels = host(url).split(".")
    return [".".join(labels[index:]) for index in range(len(labels)) if labels[index]]


def plain_url(url: str) -> str:
    """An address without scheme, user, ``www.``, fragment and final slash."""
    try:
        parts = urlsplit(url if "//" in url else "//" + url)
        port = f":{parts.port}" if parts.port not in (None, 80, 443) else ""
    except ValueError:
        return url
    query = f"?{parts.query}" if parts.query else ""
    return host(url).removeprefix("www.") + port + (parts.path + query).rstrip("/")


def _listed(listed: HashedSet, names: Iterable[Sequence[str]]) -> list[list[str]]:
    """For each document those of its names that are in a list."""
    names = list(names)
    inside = iter(listed.contains([name for some in names for name in some]).tolist())
    return [[name for name in some if next(inside)] for some in names]


def _domains(entries: list[str]) -> HashedSet:
    return HashedSet([host(entry) for entry in entries])


def _addresses(entries: list[str]) -> HashedSet:
    return HashedSet([plain_url(entry) for entry in entries])


def _parts(entries: list[str]) -> list[str]:
    return sorted({_SEPARATOR.sub("", entry.lower()) for entry in entries} - {""})
