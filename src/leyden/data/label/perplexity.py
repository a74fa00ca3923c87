"""The stage ``perplexity``: how expected a document is to an n-gram model of good text, after CCNet (arXiv 1911.00359).

CCNet took Wikipedia, a 5-gram model over SentencePiece tokens and thirds per language. Here the reference text is given
by path, and the model is our own (:mod:`leyden.data.label.kneser_ney`), over words or a tokenizer's pieces.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from leyden.core.files import atomic_file
from leyden.core.log import logger, progress, say
from leyden.data.documents import Documents, Reject
from leyden.data.engine import DataEngine
from leyden.data.label.arpa import read_arpa
from leyden.data.label.kept_scores import kept_scores, score_corpus
from leyden.data.label.kneser_ney import train_ngrams
from leyden.data.label.ngram import BOS, EOS, UNK, NGramModel
from leyden.data.marks import map_missing
from leyden.data.stage import Corpus, Stage
from leyden.tokenizer import GaveUpError

_WORDS = re.compile(r"\n|\w+|[^\w\s]")
_DIGITS = str.maketrans(dict.fromkeys("123456789", "0"))

Bucket = Literal["head", "middle", "tail"]


class Perplexity(Stage):
    """Set the score ``perplexity``, and ``perplexity`` in the metadata to ``head``, ``middle`` or ``tail``.

    A line is a sentence; text is put in lower case and digits become 0, as CCNet does. A document without words, or one
    on which the tokenizer gives up, has no score and is of the tail. The model is left in ``model/`` of the stage's
    work; ``write_arpa(NGramModel.load(work / "model"), path)`` gives it to others.
    """

    VERSION: ClassVar[int] = 2
    WHOLE_CORPUS: ClassVar[bool] = True

    kind: Literal["perplexity"] = "perplexity"
    reference: tuple[Path, ...] = ()
    """Files and folders of text to estimate the model from; it is held in memory, 200 bytes a word."""
    model: Path | None = None
    """An ARPA file (``.arpa``, ``.arpa.gz``) instead, of lower-case words or of the tokenizer's pieces."""
    tokenizer: Path | None = None
    """Directory of a tokenizer, whose pieces are the words; no text is then unknown. None: words and marks."""
    order: int = Field(default=5, ge=1, le=8)
    """Words in the longest n-gram; CCNet's 5."""
    min_count: int = Field(default=1, ge=1)
    """N-grams of three and more words that are rarer are left out, which makes the model smaller."""
    head: float = Field(default=0.3, ge=0, le=1)
    """Share of the documents, those of the least perplexity, that are the head; CCNet's code cuts at 30 and 60 %."""
    middle: float = Field(default=0.3, ge=0, le=1)
    """Share that follows; the rest is the tail."""
    keep: tuple[Bucket, ...] = ("head", "middle", "tail")
    """What is kept; others are dropped."""
    language: str | None = None
    """Score only documents of this language (ISO 639-1); others go on as they are. None: all."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.reference) == (self.model is not None):
            raise ValueError("give either reference (text to estimate a model from) or model (an ARPA file)")
        if self.head + self.middle > 1:
            raise ValueError("head and middle are shares of the whole and cannot be more than 1 together")
        if not self.keep:
            raise ValueError("keep must name at least one of head, middle, tail")
        return self

    def files(self) -> tuple[Path, ...]:
        """The reference or the model, and the tokenizer."""
        return (*self.reference, *(path for path in (self.model, self.tokenizer) if path))

    def prepare(self, corpus: Corpus) -> None:
        """Estimate the model, score everything, and find the buckets' borders."""
        place = corpus.work / "model"
        map_missing(DataEngine(), self._make_model, [(corpus.work / "model.done", place)], "estimating the model")
        scores = score_corpus(corpus, partial(self._score, model=place), "scoring perplexity")
        cuts = [_quantile(scores, share) for share in (self.head, self.head + self.middle)]
        facts = {
            "n-grams": [len(order.keys) for order in NGramModel.load(place).orders],
            "scored": len(scores),
            "head up to": cuts[0],
            "middle up to": cuts[1],
            "percentiles": {f"p{p}": _quantile(scores, p / 100) for p in (5, 25, 50, 75, 95)},
        }
        with atomic_file(corpus.work / "report.json") as part:
            part.write_text(json.dumps(facts, indent=1))

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Score, name the bucket, drop what is not to be kept."""
        facts = self.report(work)
        rows = self._rows(documents)
        scores = kept_scores(work, shard, documents)
        borders = [facts["head up to"], facts["middle up to"]]
        metadata = documents.column("metadata")
        reasons: list[str | None] = [None] * len(documents)
        for row in rows:
            bucket = _bucket(float(scores[row]), borders)
            metadata[row] = json.dumps(
                (json.loads(metadata[row]) if metadata[row] else {}) | {"perplexity": bucket}, ensure_ascii=False
            )
            if bucket not in self.keep:
                reasons[row] = f"perplexity: {bucket}"
        details = [
            f"perplexity {score:.4g}; the head is up to {_shown(borders[0])}, the middle up to {_shown(borders[1])}"
            for score in scores
        ]
        return documents.with_column("metadata", metadata).score("perplexity", scores).drop(reasons, details)

    def report(self, work: Path) -> dict[str, Any]:
        """The model's size and the borders."""
        return json.loads((work / "report.json").read_text())

    def _make_model(self, place: Path) -> list[Path]:
        if self.model is not None:
            model = read_arpa(self.model)
        else:
            model = train_ngrams(self._reference_sentences(), self.order, min_count=self.min_count)
            say(f"perplexity: a model of {sum(len(order.keys) for order in model.orders):,} n-grams")
        model.save(place)
        return sorted(place.iterdir())

    def _reference_sentences(self) -> Iterator[list[str]]:
        """Those of the reference; a text on which the tokenizer gives up is left out, with a line."""
        for text in _reference(self.reference):
            try:
                sentences = self._sentences(text)
            except GaveUpError as error:
                logger(__name__).warning("perplexity.reference: a text is left out: %s", error)
                continue
            yield from sentences

    def _sentences(self, text: str) -> list[list[str]]:
        """The words of every line that has some."""
        lines = normalise(text).split("\n")
        if self.tokenizer is None:
            found = [_WORDS.findall(line) for line in lines]
        else:
            pieces = _tokenizer(self.tokenizer, _changed_ns(self.tokenizer))
            found = [[str(id_) for id_ in pieces.encode(line.strip())] for line in lines]
        return [words for words in found if words]

    def _rows(self, documents: Documents) -> np.ndarray:
        """The documents to score."""
        if self.language is None:
            return np.arange(len(documents))
        return np.flatnonzero([language == self.language for language in documents.column("language")])

    def _score(self, documents: Documents, model: Path) -> np.ndarray:
        """[D] float64, perplexities; NaN for documents that are not scored."""
        loaded, texts, rows = _loaded(model, _changed_ns(model)), documents.texts(), self._rows(documents)
        tokens = [np.empty(0, np.int64)] * len(rows)
        for index, row in enumerate(rows):
            try:
                by_words = self.tokenizer is None
                tokens[index] = (
                    tokens_of(texts[row], loaded) if by_words else loaded.encode(self._sentences(texts[row]))
                )
            except GaveUpError as error:
                name = documents.column("id")[row]
                logger(__name__).warning("the document %s has no perplexity: %s", name, error)
        result = np.full(len(documents), np.nan)
        result[rows] = perplexities(tokens, loaded)
        return result


def normalise(text: str) -> str:
    """Lower case, every digit 0."""
    return text.lower().translate(_DIGITS)


def tokens_of(text: str, model: NGramModel) -> np.ndarray:
    """[T] int64, the words of a text: each line with words is a sentence, from :data:`BOS` to :data:`EOS`."""
    ids = model.ids
    known = [-1 if word == "\n" else ids.get(word, UNK) for word in _WORDS.findall(normalise(text))]
    flat = np.array([-1, *known, -1], np.int64)
    breaks = flat == -1
    flat = flat[~(breaks & np.roll(breaks, -1)) | (np.arange(len(flat)) == len(flat) - 1)]  # no empty lines
    if len(flat) < 3:
        return np.empty(0, np.int64)
    breaks = flat == -1
    inner = breaks.copy()
    inner[[0, -1]] = False
    places = np.repeat(np.arange(len(flat)), 1 + inner)  # a break inside ends one sentence and begins another
    tokens = flat[places]
    starts = np.flatnonzero(tokens == -1)
    tokens[starts] = np.where(np.arange(len(starts)) % 2 == 0, BOS, EOS)
    return tokens


def perplexities(tokens: Sequence[np.ndarray], model: NGramModel) -> np.ndarray:
    """[D] float64, the perplexity of each text over its words and sentence ends; NaN of those without.

    Args:
        tokens: D times [T] int64, sentences from :data:`BOS` to :data:`EOS`.
    """
    lengths = np.array([len(part) for part in tokens], np.int64)
    all_ = np.concatenate([np.empty(0, np.int64), *tokens])
    owner = np.repeat(np.arange(len(tokens)), lengths)
    scored = all_ != BOS
    sums = np.bincount(owner, model.log_probabilities(all_), len(tokens))
    with np.errstate(divide="ignore", invalid="ignore"):
        return 10.0 ** (-sums / np.bincount(owner[scored], minlength=len(tokens)))


def _bucket(score: float, borders: Sequence[float | None]) -> Bucket:
    if borders[0] is not None and score <= borders[0]:
        return "head"
    return "middle" if borders[1] is not None and score <= borders[1] else "tail"


def _quantile(ordered: np.ndarray, share: float) -> float | None:
    """The score up to which ``share`` of the sorted scores lie; None where that is none of them."""
    count = round(share * len(ordered))
    return float(ordered[count - 1]) if count else None


def _shown(border: float | None) -> str:
    return "nothing" if border is None else f"{border:.4g}"


def _reference(paths: Iterable[Path]) -> Iterator[str]:
    from leyden.data.readers import read_documents

    rejects: list[Reject] = []
    with progress("reading the reference", None, "documents") as bar:
        for document in read_documents(paths, rejects):
            yield document.text
            bar.advance()
    if rejects:
        say(f"perplexity.reference: {len(rejects)} set aside, the first: {rejects[0]}")


@functools.lru_cache(maxsize=2)
def _loaded(directory: Path, changed_ns: int) -> NGramModel:
    return NGramModel.load(directory)


@functools.lru_cache(maxsize=2)
def _tokenizer(directory: Path, changed_ns: int) -> Any:
    from leyden.tokenizer import Tokenizer

    return Tokenizer.load(directory)


def _changed_ns(directory: Path) -> int:
    """When the youngest file of a directory was written."""
    return max((path.stat().st_mtime_ns for path in directory.iterdir()), default=0)
