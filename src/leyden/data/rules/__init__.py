"""Stages that judge or rewrite each document by itself: the rules of C4, Gopher and FineWeb, Unicode repair, personal
data, address lists, metadata, language, script and length.

Every reason begins with the rule's source, every detail says what was measured and what is allowed.
"""

from leyden.data.rules.addresses import Urls
from leyden.data.rules.base import RuleStage
from leyden.data.rules.c4 import C4
from leyden.data.rules.chain import PROSE, apply_chain
from leyden.data.rules.fineweb import FineWeb
from leyden.data.rules.gopher import GopherQuality, GopherRepetition
from leyden.data.rules.language import Language
from leyden.data.rules.length import Length
from leyden.data.rules.metadata import Metadata
from leyden.data.rules.personal import Personal
from leyden.data.rules.repair import Unicode
from leyden.data.rules.script import Script

__all__ = [
    "C4",
    "PROSE",
    "FineWeb",
    "GopherQuality",
    "GopherRepetition",
    "Language",
    "Length",
    "Metadata",
    "Personal",
    "RuleStage",
    "Script",
    "Unicode",
    "Urls",
    "apply_chain",
]
