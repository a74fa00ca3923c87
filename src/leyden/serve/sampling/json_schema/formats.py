"""Formats of strings (JSON Schema Validation, section 7.3), as patterns.

A pattern takes no text that is not of its format, and leaves out rare ones: years before 1000, leap seconds, quoted and
internationalised names, domains in brackets, hosts and paths longer than anyone writes.
"""

from functools import cache

from .patterns import pattern_term
from .regular import Term

_LABEL = r"[A-Za-z][a-z0-9]{0,19}(?:-[a-z0-9]{1,19})?"
_DOMAIN = rf"(?:{_LABEL}\.){{1,4}}[A-Za-z]{{2,18}}"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_HEX = r"[0-9a-fA-F]{1,4}"
_IPV6 = "|".join(
    (
        rf"(?:{_HEX}:){{7}}{_HEX}",
        rf"(?:{_HEX}:){{1,7}}:",
        *(rf"(?:{_HEX}:){{1,{7 - tail}}}(?::{_HEX}){{{tail}}}" for tail in range(1, 7)),
        rf":(?::{_HEX}){{1,7}}",
        "::",
    )
)
_YEAR = r"[1-9][0-9]{3}"
_LEAP = r"(?:(?:[1-9][0-9])(?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_SECONDS = r"[0-9]{1,6}S"
_MINUTES = rf"[0-9]{{1,6}}M(?:{_SECONDS})?"
_HOURS = rf"(?:[0-9]{{1,6}}H(?:{_MINUTES})?|{_MINUTES}|{_SECONDS})"
_DAYS = rf"[0-9]{{1,6}}D(?:T{_HOURS})?"
_MONTHS = rf"[0-9]{{1,6}}M(?:{_DAYS})?"
_YEARS = rf"[0-9]{{1,6}}Y(?:{_MONTHS})?"
_UNRESERVED = r"A-Za-z0-9._~"
_PATH = rf"(?:/[{_UNRESERVED}!$&'()*+,;=:@/-]{{0,128}})?"
_QUERY = rf"(?:\?[{_UNRESERVED}!$&'()*+,;=:@/?-]{{0,128}})?"
_FRAGMENT = rf"(?:#[{_UNRESERVED}!$&'()*+,;=:@/?-]{{0,32}})?"
_PORT = r"(?::[1-9][0-9]{0,3})?"
_URI = rf"(?:https?|ftp|wss?|file|s3|git|ssh)://{_HOST}{_PORT}{_PATH}{_QUERY}{_FRAGMENT}"
_URN = rf"(?:urn:[a-z][a-z0-9]{{1,15}}:|mailto:|data:|tel:)[{_UNRESERVED}+,;=:@/-]{{1,128}}"
_POINTER = r"(?:/(?:[^/~]|~[01])*)*"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}T{_TIME}",
    "duration": rf"P(?:(?:{_YEARS}|{_MONTHS}|{_DAYS}|T{_HOURS})|[0-9]{{1,6}}W)",
    "email": rf"[A-Za-z0-9_+-]{{1,24}}(?:\.[A-Za-z0-9_+-]{{1,16}}){{0,2}}@{_DOMAIN}",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uri": rf"{_URI}|{_URN}",
    "uri-reference": rf"{_URI}|/?(?:[{_UNRESERVED}-]{{1,64}}/){{0,6}}[{_UNRESERVED}-]{{0,64}}{_QUERY}{_FRAGMENT}",
    "uri-template": rf"(?:https?://{_HOST})?(?:/(?:[{_UNRESERVED}-]{{1,64}}|\{{[A-Za-z_][A-Za-z0-9_]{{0,31}}\}})){{1,6}}",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9]{{1,5}})(?:#|{_POINTER})",
}
FORMATS |= {f"idn-{name}": FORMATS[name] for name in ("email", "hostname")}
FORMATS |= {"iri": FORMATS["uri"], "iri-reference": FORMATS["uri-reference"]}

SAYS_NOTHING = frozenset(("password", "binary", "byte", "float", "double", "path", "file-path", "directory-path"))
"""Formats of other tools that shut no value out, as far as a text can tell."""
INTEGERS = {
    f"{sign}int{bits}": _bounds
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
    for _bounds in [(0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)]
}
"""OpenAPI's formats of whole numbers, with the least and the largest."""


@cache
def format_term(name: str) -> Term:
    """The texts of a format of ``FORMATS``."""
    return pattern_term(FORMATS[name], whole=True)
