"""Training a vocabulary from counted words and the share that each language is to have.

Languages of which there is little text get few tokens of their own. Where a language has a **target** (bytes per
token), its counts are multiplied by a weight, which is raised until a vocabulary trained on the weighted counts
compresses it as asked: its text is up-sampled, yet read once. (arXiv 2501.08313, section 4.1, says that MiniMax-01's
multilingual text was up-sampled for compression; how, it leaves open.)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.tokenizer.bpe import alphabet
from leyden.tokenizer.merges import Merges, learn
from leyden.tokenizer.words import WordCounts, table

MAX_WEIGHT = 1000.0
"""No language is counted more often than this."""
_ROUNDS = 6
_POWER = 4.0  # compression grows slowly with the weight: a first guess at by which power of it
_MAX_POWER = 30.0
_NEAR = 0.005  # a target is reached where no more than this share is missing


@dataclass(frozen=True)
class Round:
    """One trial.

    Attributes:
        weights: by which each language's counts were multiplied.
        bytes_per_token: what each language came to, on the words that were trained on.
        num_tokens: the vocabulary's size, without special tokens.
    """

    weights: dict[str, float]
    bytes_per_token: dict[str, float]
    num_tokens: int


@dataclass(frozen=True)
class Training:
    """A learnt vocabulary and how it came about.

    Attributes:
        merges: of the last round.
        rounds: the trials, in order; one where no language has a target.
        targets: bytes per token asked for.
        num_words: distinct words trained on.
        occurrences: how often they occur, unweighted.
    """

    merges: Merges
    rounds: tuple[Round, ...]
    targets: dict[str, float]
    num_words: int
    occurrences: int


def train(
    counts: WordCounts, num_tokens: int, *, targets: Mapping[str, float] | None = None, allow_smaller: bool = False
) -> Training:
    """Learn ``num_tokens`` tokens, the 256 bytes among them.

    Args:
        counts: the words.
        num_tokens: special tokens do not count.
        targets: bytes per token to reach, by language.
        allow_smaller: whether to go on towards the targets where the words support fewer tokens than asked for; else
            what they support is returned at once.

    Raises:
        UserError: a target is not positive, or of a language without text; or counts do not fit 64 bits.
    """
    targets = _checked(targets or {}, counts)
    distinct, occurs = table(counts.by_language())
    words = [word.encode() for word in distinct]
    sizes = np.fromiter(map(len, words), np.int64, len(words))
    weights = dict.fromkeys(occurs, 1.0)
    rounds: list[Round] = []
    while True:
        title = "learning merges" if not targets else f"learning merges, round {len(rounds) + 1} of at most {_ROUNDS}"
        with progress(title, num_tokens - 256, "merges") as bar:
            merges = learn(
                words, _weighted(occurs, weights, sizes), num_tokens, alphabet=alphabet(), advance=bar.advance
            )
        reached = {
            language: float(count @ sizes) / max(float(count @ merges.lengths), 1) for language, count in occurs.items()
        }
        rounds.append(Round(weights, reached, len(merges.tokens)))
        heavier = _heavier(rounds, targets)
        too_few = len(merges.tokens) < num_tokens and not allow_smaller
        if heavier == weights or len(rounds) == _ROUNDS or too_few:
            occurrences = int(sum(count.sum() for count in occurs.values()))
            return Training(merges, tuple(rounds), targets, len(words), occurrences)
        weights = heavier


def _checked(targets: Mapping[str, float], counts: WordCounts) -> dict[str, float]:
    for language, target in targets.items():
        if not target > 0:
            raise UserError(f"A target is a number of bytes per token above 0; given for {language!r}: {target}.")
        there = {group.language for group, sizes in counts.sizes.items() if sizes.num_bytes}
        if language not in there:
            names = ", ".join(name or "unknown" for name in sorted(there)) or "none"
            raise UserError(f"There is a target for {language!r}, of which there is no text; there is text of {names}.")
    return dict(targets)


def _weighted(occurs: Mapping[str, np.ndarray], weights: Mapping[str, float], sizes: np.ndarray) -> np.ndarray:
    """[W] int64, all languages' counts together.

    Raises:
        UserError: pairs of them may come to 2^63.
    """
    total = np.zeros(len(sizes), np.int64)
    if sum(weights[language] * float(count @ sizes.astype(float)) for language, count in occurs.items()) >= 2.0**62:
        raise UserError("The words are too many for counts of 64 bits (2^62 weighted bytes or more); take a sample.")
    for language, count in occurs.items():
        total += count if weights[language] == 1 else np.rint(count * weights[language]).astype(np.int64)
    return total


def _heavier(rounds: list[Round], targets: Mapping[str, float]) -> dict[str, float]:
    """The next round's weights: raised where the target is missed, never lowered.

    By a power of what is missing, which is the first time a guess, then what the last raise showed.
    """
    now, before = rounds[-1], rounds[-2] if len(rounds) > 1 else None
    weights = dict(now.weights)
    for language, target in targets.items():
        missing = math.log(target / now.bytes_per_token[language])
        if missing < _NEAR:
            continue
        power = _POWER
        if before is not None and weights[language] > before.weights[language]:
            gained = math.log(now.bytes_per_token[language] / before.bytes_per_token[language])
            raised = math.log(weights[language] / before.weights[language])
            power = raised / max(gained, raised / _MAX_POWER)
        weights[language] = min(weights[language] * math.exp(max(power, 1.0) * missing), MAX_WEIGHT)
    return weights


def text_needed(counts: WordCounts, reached: int, num_tokens: int) -> str:
    """How much text ``num_tokens`` tokens would take, in words, where that of ``counts`` supports ``reached``.

    The vocabulary that text supports grows as a power of its size (Heaps' law). The power is taken from half of the
    text: a sample in which each occurrence of a word stays or goes by the toss of a coin.
    """
    distinct, occurs = table(counts.by_language())
    half = np.random.default_rng(0).binomial(sum(occurs.values()), 0.5)
    some = [word.encode() for word, count in zip(distinct, half.tolist(), strict=True) if count]
    fewer = len(learn(some, half[half > 0], num_tokens, alphabet=alphabet()).tokens)
    if fewer - 256 < 300:
        return "give more text (there is too little to say how much)"
    power = np.log2((reached - 256) / (fewer - 256))
    if power <= 0.05:
        return "give other text: more of this kind supports hardly more"
    needed = counts.total.num_bytes * ((num_tokens - 256) / (reached - 256)) ** (1 / power)
    return (
        f"give about {_size(needed)} of such text instead of {_size(counts.total.num_bytes)} (extrapolated: half of it "
        f"supports {fewer})"
    )


def _size(num_bytes: float) -> str:
    thousands = min(int(math.log10(max(num_bytes, 1)) // 3), 4)
    return f"{num_bytes / 1000**thousands:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[thousands]}"
