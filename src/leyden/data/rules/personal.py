"""Personal data: e-mail addresses, public IP addresses and telephone numbers, replaced by ones that are nobody's."""

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from leyden.data.documents import Documents
from leyden.data.rules.base import RuleStage, rewrite_chosen

MASKED = "masked"
"""The score that counts what was replaced in a document; no score where nothing was."""

_LOCAL = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z0-9_][A-Za-z0-9_.+%&-]*+\Z")  # before an @; RFC 5321's characters in use
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)+[A-Za-z](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])(?![A-Za-z0-9@])")

# What precedes is looked at behind the first digit: a pattern that begins with characters is searched for much faster.
_IPV4 = re.compile(r"\d(?<![\w.].)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"[23](?<![\w:.].)[0-9A-Fa-f]{3}:[0-9A-Fa-f:]*[0-9A-Fa-f:](?![\w:])")
_PHONE = re.compile(
    r"[+(\d](?<![\w+.-].)(?:(?<=\+)\d{1,3}(?: ?\(\d{1,4}\))?(?:[ ./-]?\d{1,5}){1,5}"
    r"|(?<=\()\d{3}\) ?\d{3}[ .-]\d{4}|(?<=\d)\d\d[-.]\d{3}[-.]\d{4})(?![\w-])"
)

_NUMBERING = re.compile(
    r"(?:\b(?:versions?|ver|release|build|firmware|sections?|sec|chapter|clause|figure|fig|table|appendix|annex)\b\.?"
    r"|§)\s*\Z",
    re.IGNORECASE,
)
"""What four numbers are numbered by, where they stand behind it: no address."""
_NUMBERING_CHARACTERS = 16
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".bmp", ".ico")
"""Endings of files that are no top-level domains: ``logo@2x.png`` is a picture."""

_RESERVED = ("example.com", "example.net", "example.org")  # RFC 2606, as are the last labels below
_RESERVED_ENDINGS = (".example", ".invalid", ".test", ".localhost", *("." + domain for domain in _RESERVED))


class Personal(RuleStage):
    """Mask personal data in texts and messages; the score ``masked`` counts it. Nothing is dropped.

    Only what is valid is masked: addresses in domains reserved for examples, private and reserved IP addresses,
    numbers with too few or too many digits stay.
    """

    TITLE: ClassVar[str] = "pii"
    VERSION: ClassVar[int] = 2
    kind: Literal["pii"] = "pii"

    emails: bool = True
    """Mask e-mail addresses."""
    ips: bool = True
    """Mask IPv4 and IPv6 addresses that are reachable in public (``ipaddress.is_global``). Four numbers right behind a
    word such as ``version`` or ``section`` stay; other versions of four numbers cannot be told from addresses."""
    phones: bool = False
    """Mask telephone numbers: international ones with ``+`` and 8 to 15 digits (E.164), and ten digits in the North
    American way. Off, as part numbers look alike."""
    email: str = "email@example.com"
    """What an e-mail address becomes; a domain of RFC 2606."""
    ipv4: str = "192.0.2.1"
    """What an IPv4 address becomes; of the range for documentation in RFC 5737."""
    ipv6: str = "2001:db8::1"
    """What an IPv6 address becomes; of the range for documentation in RFC 3849."""
    phone: str = "+1 555 0100"
    """What a telephone number becomes; of those kept for fiction."""

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Rewrite texts and messages."""
        chosen = self.chosen(documents)
        found = [self.mask(text)[1] if use else 0 for use, text in zip(chosen, documents.texts(), strict=True)]
        if not any(found):
            return documents
        touched = np.array(found) > 0
        masked = rewrite_chosen(documents, touched, lambda texts: [self.mask(text)[0] for text in texts])
        return masked.score(MASKED, [number or None for number in found])

    def mask(self, text: str) -> tuple[str, int]:
        """The text with masks, and how many there are."""
        number = 0
        if self.emails and "@" in text:
            text, number = _mask_emails(text, self.email)
        for asked, pattern, valid, mask in (
            (self.ips, _IPV4, _is_public, self.ipv4),
            (self.ips, _IPV6, _is_public, self.ipv6),
            (self.phones, _PHONE, _is_number, self.phone),
        ):
            if asked:
                spans = [
                    match.span()
                    for match in pattern.finditer(text)
                    if match[0] != mask and valid(match[0]) and not (pattern is _IPV4 and _is_numbering(text, match))
                ]
                text, number = _masked(text, spans, mask), number + len(spans)
        return text, number


def _mask_emails(text: str, mask: str) -> tuple[str, int]:
    spans, end = [], 0
    for at in re.finditer("@", text):
        local = _LOCAL.search(text, max(end, at.start() - 64), at.start())
        domain = local and _DOMAIN.match(text, at.end())
        if local and domain and text[local.start() : domain.end()] != mask and _is_personal(domain[0]):
            end = domain.end()
            spans.append((local.start(), end))
    return _masked(text, spans, mask), len(spans)


def _masked(text: str, spans: Sequence[tuple[int, int]], mask: str) -> str:
    if not spans:
        return text
    begins = [0, *(last for _, last in spans)]
    ends = [*(first for first, _ in spans), len(text)]
    return mask.join(text[begin:end] for begin, end in zip(begins, ends, strict=True))


def _is_personal(domain: str) -> bool:
    domain = domain.lower()
    return len(domain) <= 253 and domain not in _RESERVED and not domain.endswith(_RESERVED_ENDINGS + _PICTURES)


def _is_numbering(text: str, match: re.Match[str]) -> bool:
    before = text[max(match.start() - _NUMBERING_CHARACTERS, 0) : match.start()]
    return _NUMBERING.search(before) is not None


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_number(number: str) -> bool:
    digits = re.sub(r"\D", "", number)
    if number.startswith("+"):
        return 8 <= len(digits) <= 15 and digits[0] != "0"
    return digits[0] in "23456789" and digits[3] in "23456789"  # area codes and exchanges begin with 2 to 9
