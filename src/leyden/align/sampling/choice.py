"""Which responses are kept: of each prompt the best by reward, as long as they are not too much alike."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from leyden.align.ngrams import Said, ngram_sets
from leyden.align.rewards.reward import Reward
from leyden.align.sampling.asking import Response
from leyden.core.errors import UserError

Embed = Callable[[Sequence[str]], np.ndarray]
"""[N] texts to [N, D] float32, each of length 1."""
Prefer = Literal["reward", "short"]


@dataclass(frozen=True)
class ChoiceSettings:
    """What is kept.

    Attributes:
        best: responses of a prompt, at most.
        least: their rewards are this at least.
        ngram_words, ngram_share: a response goes if so much of its n-grams was said by better ones of its prompt;
            above 1: none goes, except copies.
        prefer: which come first of those with enough reward: those with the best (``reward``), or the shortest
            (``short``: shortest rejection sampling of Kimi k1.5, arXiv 2501.12599, section 2.6).
        similarity: a response goes if its embedding has this cosine with that of a better one; None: none is made.

    Raises:
        UserError: fewer than one are to be kept, or n-grams have no words.
    """

    best: int = 1
    least: float = 1.0
    ngram_words: int = 4
    ngram_share: float = 0.8
    similarity: float | None = None
    prefer: Prefer = "reward"

    def __post_init__(self) -> None:
        if self.best < 1 or self.ngram_words < 1:
            raise UserError(f"best ({self.best}) and ngram-words ({self.ngram_words}) are 1 or more.")
        if self.prefer not in get_args(Prefer):
            raise UserError(f"--prefer is one of {', '.join(get_args(Prefer))}; given: {self.prefer}.")


@dataclass(frozen=True)
class Chosen:
    """What became of responses.

    Attributes:
        kept: places of those that are kept, rising.
        fates: [N] of each response, ``kept`` or why it is not.
        similarity: [N] the greatest cosine with a better one of its prompt that was kept; None where not measured.
        num_alike: prompts of which all rewards are equal, so that nothing was chosen by them but whether they suffice.
        num_without: prompts of which none is kept.
    """

    kept: tuple[int, ...]
    fates: tuple[str, ...]
    similarity: tuple[float | None, ...]
    num_alike: int
    num_without: int

    def counts(self) -> dict[str, int]:
        """How many there are of each fate."""
        return dict(Counter(self.fates).most_common())


def choose(
    responses: Sequence[Response], rewards: Sequence[Reward], settings: ChoiceSettings, embed: Embed | None = None
) -> Chosen:
    """Choose among the responses of each prompt.

    They are looked at from the best reward down, or from the shortest up, of equal ones in the order in which they were
    drawn. Kept is none that
    was refused or cut (it would teach not to end), is empty, has no reward or too small a one.

    Args:
        responses, rewards: [N] each.
        settings: what is kept.
        embed: makes embeddings; needed where there is a similarity.
    """
    fates = [_unfit(one, reward, settings.least) for one, reward in zip(responses, rewards, strict=True)]
    fit = [place for place, fate in enumerate(fates) if fate is None]
    texts = [responses[place].text for place in fit]
    ngrams = dict(zip(fit, ngram_sets(texts, settings.ngram_words), strict=True))
    vectors: dict[int, np.ndarray] = {}
    if settings.similarity is not None and texts:
        assert embed is not None, "a similarity is of embeddings"
        vectors = dict(zip(fit, embed(texts), strict=True))
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(responses):
        groups.setdefault(one.prompt.id, []).append(place)
    kept: list[int] = []
    nearest: dict[int, float] = {}
    for places in groups.values():
        mine: list[int] = []
        said = Said()
        fitting = [place for place in places if fates[place] is None]
        for place in sorted(fitting, key=lambda p: _order(responses[p], rewards[p], settings.prefer)):
            if mine and place in vectors:
                nearest[place] = float(max(vectors[place] @ vectors[other] for other in mine))
            fates[place] = _too_much(settings, len(mine), said.share(ngrams[place])[0], nearest.get(place))
            if any(responses[place].text.split() == responses[other].text.split() for other in mine):
                fates[place] = "a copy"
            if fates[place] is None:
                fates[place] = "kept"
                mine.append(place)
                said.keep(ngrams[place], place)
        kept += mine
    alike = sum(len({rewards[place].reward for place in places}) == 1 for places in groups.values() if len(places) > 1)
    without = sum(not any(fates[place] == "kept" for place in places) for places in groups.values())
    return Chosen(
        tuple(sorted(kept)),
        tuple(fate or "" for fate in fates),
        tuple(nearest.get(place) for place in range(len(responses))),
        alike,
        without,
    )


def _unfit(response: Response, reward: Reward, least: float) -> str | None:
    """Why a response cannot be kept, whatever others there are."""
    if response.finish != "stop":
        return "cut" if response.finish == "length" else response.finish
    if not response.text.strip():
        return "empty"
    if reward.reward is None:
        return "no reward"
    return "too small a reward" if reward.reward < least else None


def _too_much(settings: ChoiceSettings, num_kept: int, share: float, similarity: float | None) -> str | None:
    """Why a response is not kept beside better ones."""
    if num_kept and share >= settings.ngram_share:
        return "n-grams said before"
    if similarity is not None and settings.similarity is not None and similarity >= settings.similarity:
        return "too similar"
    return "enough are better" if num_kept >= settings.best else None


def _order(response: Response, reward: Reward, prefer: Prefer) -> tuple[float, float]:
    """What is preferred has less of it; equal ones stay in the order in which they were drawn."""
    good, long = -1.0 if reward.reward is None else reward.reward, len(response.text.strip())
    return (long, -good) if prefer == "short" else (-good, 0)
