"""Several stages over one batch, as a build would run them one after the other."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from leyden.data.documents import Documents
from leyden.data.rules.base import RuleStage
from leyden.data.rules.c4 import C4
from leyden.data.rules.fineweb import FineWeb
from leyden.data.rules.gopher import GopherQuality, GopherRepetition

PROSE: tuple[RuleStage, ...] = (GopherRepetition(), GopherQuality(), C4(), FineWeb())
"""The rules for web text, in the order in which FineWeb ran them."""


def apply_chain(documents: Documents, stages: Sequence[RuleStage] = PROSE) -> Documents:
    """Every document as the stages leave it, in order; a stage sees what those before it kept."""
    rows, parts, places = np.arange(len(documents)), [], []
    for stage in stages:
        judged = stage.apply(documents, "", Path())
        dropped = np.array([reason is not None for reason in judged.column("reason")], bool)
        parts.append(judged.dropped().table)
        places.append(rows[dropped])
        documents, rows = judged.kept(), rows[~dropped]
    order = np.argsort(np.concatenate([*places, rows]))
    return Documents(pa.concat_tables([*parts, documents.table]).take(order))
