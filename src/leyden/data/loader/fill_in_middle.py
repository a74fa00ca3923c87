"""Fill-in-the-middle: documents are cut into prefix, middle and suffix and rearranged, so that a model learns to fill a
gap from what stands around it (Bavarian et al. 2022, arXiv 2207.14255).

A document is rearranged as a whole, before documents are packed into sequences, and its first and last special tokens
stay where they are. With the sentinels P, S and M it becomes one of

    P prefix S suffix M middle       (PSM)
    P S suffix M prefix middle       (SPM, so that prefix and middle are one text; section 3 of the paper)

It is three tokens longer, every token of it is learned as it was, and the middle is learned behind all that is around
it. Which documents are rearranged, and where they are cut, follows from the seed and the number of the document alone:
nothing has to be saved for a run to resume, and packing knows all lengths beforehand.

Cuts fall between tokens, since documents are tokens already, and never within a character. The paper cuts between any
two characters: a text that a user leaves off within a word may then be tokenised otherwise than what was trained on
here, where both sides of a cut keep the tokens of the whole document.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from leyden.core.config import Config
from leyden.data.loader.order import hashes
from leyden.data.shards import TokenShards

SHORTEST = 5
"""Tokens that a document has at least to be rearranged: one of each part between the first and the last."""

_ADDED = 3
_RATE, _SPM, _FIRST_CUT, _SECOND_CUT = range(4)  # what is drawn for a document


class FillInMiddle(Config):
    """How documents are rearranged; a table ``fim`` of a stage."""

    rate: float = Field(default=0.1, gt=0, le=1)
    """The share of the documents that is rearranged: 0.1 as in DeepSeek-V3 (arXiv 2412.19437, section 4.1)."""
    spm_share: float = Field(default=0.0, ge=0, le=1)
    """Of these, the share in the order SPM; the others are in PSM."""
    prefix: str = Field(default="<fim_prefix>", min_length=1)
    suffix: str = Field(default="<fim_suffix>", min_length=1)
    middle: str = Field(default="<fim_middle>", min_length=1)
    """What the tokenizer calls the special tokens; the names of StarCoder (arXiv 2305.06161)."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError(f"prefix, suffix and middle must be different tokens; given {', '.join(self.tokens)}")
        return self

    @property
    def tokens(self) -> tuple[str, str, str]:
        """The special tokens: prefix, suffix, middle."""
        return self.prefix, self.suffix, self.middle


@dataclass(frozen=True)
class Sentinels:
    """The ids of tokens that matter for the rearranging.

    Attributes:
        prefix, suffix, middle: that are written.
        first, last: of a document, which stay where they are.
        continuing: those that begin within a character.
    """

    prefix: int
    suffix: int
    middle: int
    first: int
    last: int
    continuing: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Span:
    """Some consecutive tokens of a rearranged document.

    Attributes:
        start: of them among the plain tokens; None: a sentinel.
        length: how many.
        sentinel: its id.
    """

    start: int | None
    length: int
    sentinel: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class FilledShards(TokenShards):
    """Token shards of which some documents are rearranged. Tokens are made when they are asked for.

    Places of tokens (``starts``) count over the documents as they are now, laid end to end.
    """

    _plain: TokenShards
    _filled: np.ndarray  # [D] bool, of the plain documents
    _places: np.ndarray  # [D] int64, where each plain document begins now
    _settings: FillInMiddle
    _sentinels: Sentinels
    _seed: int

    @classmethod
    def of(cls, plain: TokenShards, settings: FillInMiddle, sentinels: Sentinels, seed: int) -> Self:
        """Rearrange a share of the documents of ``plain``, chosen by their numbers."""
        drawn = _uniform(hashes(plain.rows, seed, _RATE))
        filled = (drawn < settings.rate) & (plain.lengths >= SHORTEST)
        lengths = plain.lengths + _ADDED * filled
        places = np.cumsum(lengths) - lengths
        said = f"{plain.fingerprint} fill in the middle {settings.model_dump_json()} {sentinels} {seed}"
        kept = {field.name: getattr(plain, field.name) for field in fields(TokenShards)}
        kept |= {"starts": places, "lengths": lengths, "fingerprint": hashlib.sha256(said.encode()).hexdigest()}
        added = {"_plain": plain, "_filled": filled, "_places": places, "_settings": settings}
        return cls(**kept, **added, _sentinels=sentinels, _seed=seed)

    def views(self, starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """See :meth:`TokenShards.views`; of rearranged documents, the tokens are copied."""
        return self._assembled(starts, lengths, self._plain.views, lambda span: np.array([span.sentinel]))

    def learned(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """See :meth:`TokenShards.learned`; the sentinels are."""

        def fetch(at: np.ndarray, count: np.ndarray) -> list[np.ndarray]:
            return np.split(self._plain.learned(at, count), np.cumsum(count)[:-1])

        return np.concatenate(self._assembled(starts, lengths, fetch, lambda _: np.ones(1, bool)))

    def _assembled(
        self,
        starts: np.ndarray,
        lengths: np.ndarray,
        fetch: Callable[[np.ndarray, np.ndarray], list[np.ndarray]],
        written: Callable[[_Span], np.ndarray],
    ) -> list[np.ndarray]:
        """What each piece consists of, fetched from the plain documents at once, with what is written for sentinels."""
        documents = np.searchsorted(self._places, starts, side="right") - 1
        offsets = starts - self._places[documents]
        places = zip(documents.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
        pieces = [self._spans(*place) for place in places]
        plain = [(span.start, span.length) for piece in pieces for span in piece if span.start is not None]
        at, count = np.array(plain, np.int64).reshape(-1, 2).T
        fetched = iter(fetch(at, count) if len(plain) else [])
        found = [[next(fetched) if span.start is not None else written(span) for span in piece] for piece in pieces]
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in found]

    def _spans(self, document: int, offset: int, length: int) -> list[_Span]:
        """Of a document as it is now, ``length`` tokens from ``offset`` on; at least one span."""
        start = int(self._plain.starts[document])
        if not self._filled[document]:
            return [_Span(start + offset, length)]
        found, place = [], 0
        for span in self._rearranged(document, start):
            first, last = max(offset, place), min(offset + length, place + span.length)
            if first < last:
                at = None if span.start is None else span.start + first - place
                found.append(_Span(at, last - first, span.sentinel))
            place += span.length
        return found

    def _rearranged(self, document: int, start: int) -> list[_Span]:
        length, ids = int(self._plain.lengths[document]), self._sentinels
        (tokens,) = self._plain.views(np.array([start]), np.array([length]))
        head, tail = int(tokens[0] == ids.first), int(tokens[-1] == ids.last)
        body = length - head - tail
        row = self._plain.rows[document : document + 1]
        drawn = sorted(int(hashes(row, self._seed, key)[0] % (body + 1)) for key in (_FIRST_CUT, _SECOND_CUT))
        cuts = [0, *(self._between_characters(tokens[head : head + body], cut) for cut in drawn), body]
        prefix, middle, suffix = (
            _Span(start + head + low, high - low) for low, high in zip(cuts[:-1], cuts[1:], strict=True)
        )
        P, S, M = (_Span(None, 1, sentinel) for sentinel in (ids.prefix, ids.suffix, ids.middle))
        is_spm = _uniform(hashes(row, self._seed, _SPM))[0] < self._settings.spm_share
        inner = (P, S, suffix, M, prefix, middle) if is_spm else (P, prefix, S, suffix, M, middle)
        return [_Span(start, head), *inner, _Span(start + length - tail, tail)]

    def _between_characters(self, body: np.ndarray, cut: int) -> int:
        """The last cut up to ``cut`` behind which a character begins."""
        while 0 < cut < len(body) and int(body[cut]) in self._continuing:
            cut -= 1
        return cut

    @cached_property
    def _continuing(self) -> frozenset[int]:
        return frozenset(self._sentinels.continuing)


def _uniform(drawn: np.ndarray) -> np.ndarray:
    """uint64 -> float64 from 0 up to 1."""
    return (drawn >> np.uint64(11)).astype(np.float64) / 2**53
