"""What a tokenizer makes of text: bytes per token, tokens per word, and how often each token is used."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from leyden.tokenizer.tokenizer import Tokenizer
from leyden.tokenizer.words import Sizes, WordCounts, WordGroup

_WORDS_PER_CALL = 100_000


@dataclass(frozen=True)
class Efficiency:
    """How some text is encoded.

    Attributes:
        sizes: of the text.
        num_tokens: that it came to.
    """

    sizes: Sizes
    num_tokens: int

    @property
    def bytes_per_token(self) -> float:
        """Compression."""
        return self.sizes.num_bytes / max(self.num_tokens, 1)

    @property
    def tokens_per_word(self) -> float:
        """Fertility; words are what white space divides, so it says little where a language writes none."""
        return self.num_tokens / max(self.sizes.num_spaced, 1)


@dataclass
class TokenSurvey:
    """Counts of tokens over text.

    Attributes:
        tokenizer: what encoded it.
        sizes: how much text there is of each group.
        uses: [V] int64, how often each token occurs in the texts of a group.
    """

    tokenizer: Tokenizer
    sizes: dict[WordGroup, Sizes] = field(default_factory=dict)
    uses: dict[WordGroup, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of_words(cls, tokenizer: Tokenizer, counts: WordCounts) -> Self:
        """The same as of the texts whose words were counted, without encoding them again.

        The tokenizer must split text as Leyden does. Words that were forgotten are missing.
        """
        survey = cls(tokenizer, dict(counts.sizes))
        for group, words in counts.words.items():
            uses, distinct = survey._uses(group), list(words)
            occurs = np.fromiter(words.values(), np.int64, len(words))
            for begin in range(0, len(distinct), _WORDS_PER_CALL):
                encoded = tokenizer.encode_batch(distinct[begin : begin + _WORDS_PER_CALL])
                times = np.repeat(occurs[begin : begin + _WORDS_PER_CALL], [len(ids) for ids in encoded])
                np.add.at(uses, np.concatenate(encoded), times)
        return survey

    def add(self, texts: Sequence[str], group: WordGroup) -> None:
        """Count the tokens of some texts.

        Raises:
            UserError: one of them holds a lone surrogate.
        """
        uses, sizes = self._uses(group), self.sizes.setdefault(group, Sizes())
        for text, ids in zip(texts, self.tokenizer.encode_batch(texts), strict=True):
            sizes.add(text)
            uses += np.bincount(ids, minlength=len(uses))

    def update(self, sizes: Mapping[WordGroup, Sizes], uses: Mapping[WordGroup, np.ndarray]) -> None:
        """Add the counts of another survey with the same tokenizer."""
        for group, size in sizes.items():
            self.sizes[group] = self.sizes.get(group, Sizes()) + size
        for group, count in uses.items():
            self.uses[group] = self._uses(group) + count

    @property
    def total_uses(self) -> np.ndarray:
        """[V] int64."""
        return sum(self.uses.values(), np.zeros(self.tokenizer.vocab_size, np.int64))

    @property
    def total(self) -> Efficiency:
        """Of all text."""
        return self._of(self.uses)

    def by_language(self) -> dict[str, Efficiency]:
        """Of each language, the largest first."""
        return self._by(lambda group: group.language)

    def by_domain(self) -> dict[str, Efficiency]:
        """Of each domain, the largest first."""
        return self._by(lambda group: group.domain)

    def unused(self) -> np.ndarray:
        """Ids, ascending, of the tokens that text could have used and did not; special tokens are not text."""
        tokenizer = self.tokenizer
        ids = np.flatnonzero(self.total_uses == 0).tolist()
        return np.array([i for i in ids if not tokenizer.is_special(i) and tokenizer.token_bytes(i)], np.int64)

    def _by(self, name: Callable[[WordGroup], str]) -> dict[str, Efficiency]:
        names = {name(group) for group in self.sizes}
        found = {one: self._of([group for group in self.sizes if name(group) == one]) for one in names}
        return dict(sorted(found.items(), key=lambda item: (-item[1].sizes.num_bytes, item[0])))

    def _of(self, groups: Iterable[WordGroup]) -> Efficiency:
        chosen = list(groups)
        sizes = sum((self.sizes[group] for group in chosen), Sizes())
        return Efficiency(sizes, int(sum(self._uses(group).sum() for group in chosen)))

    def _uses(self, group: WordGroup) -> np.ndarray:
        return self.uses.setdefault(group, np.zeros(self.tokenizer.vocab_size, np.int64))
