"""A made-up world of towns and their founders, for questions about documents where no published file is given."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

_ONSETS = ("b", "br", "d", "dr", "f", "g", "gl", "h", "k", "kr", "l", "m", "n", "p", "r", "s", "sk", "t", "tr", "v")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "au")
_TOWN_ENDS = ("ford", "ham", "wick", "mere", "stead", "gate", "moor", "holm")
_VILLAGE_ENDS = ("by", "dale", "cot", "den", "hurst", "toft", "wold", "garth")
_PERSON_ENDS = ("n", "s", "lin", "rik", "ven", "mar", "dis", "tha")
_CRAFTS = ("rope", "glass", "cheese", "clocks", "paper", "saddles", "bells", "boats", "lace", "knives", "honey")
_PROFESSIONS = ("miller", "surveyor", "physician", "printer", "sailor", "lawyer", "gardener", "merchant", "smith")
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_SYLLABLES = len(_ONSETS) * len(_VOWELS)
NUM_TOWNS = _SYLLABLES**2 * len(_TOWN_ENDS)
_FIRST_YEAR, _YEARS = 1100, 800
_SCATTER = 77_773
"""Prime, and no divisor of :data:`NUM_TOWNS`: neighbouring numbers get names that are unlike each other."""


@dataclass(frozen=True)
class Town:
    """A town and its founder, by a number below :data:`NUM_TOWNS`; no two have a name in common."""

    number: int

    @property
    def name(self) -> str:
        return _name(self.number, _TOWN_ENDS)

    @property
    def founder(self) -> str:
        return _name(self.number, _PERSON_ENDS)

    @property
    def birthplace(self) -> str:
        """The village where the founder was born."""
        return _name(self.number, _VILLAGE_ENDS)

    @property
    def year(self) -> int:
        """When it was founded."""
        return _FIRST_YEAR + self.number * _SCATTER % _YEARS

    def document(self) -> str:
        """What there is to know of the town."""
        draws = random.Random(f"town {self.number}")
        craft, weekday, miles = draws.choice(_CRAFTS), draws.choice(_WEEKDAYS), draws.randrange(3, 90)
        return (
            f"{self.name}\n{self.name} is a town that is known for its {craft}. It was founded by {self.founder} in "
            f"the year {self.year}. A market is held there every {weekday}, and the road to it is {miles} miles long."
        )

    def founders_document(self) -> str:
        """What there is to know of its founder."""
        draws = random.Random(f"founder {self.number}")
        profession, age = draws.choice(_PROFESSIONS), draws.randrange(40, 90)
        return (
            f"{self.founder}\n{self.founder} was a {profession} who was born in the village of {self.birthplace}. "
            f"{self.founder} lived to the age of {age} and left {draws.randrange(2, 30)} letters."
        )


def other_documents(draws: random.Random) -> Iterator[str]:
    """Documents without end of the towns with odd numbers and their founders; questions are about even ones."""
    while True:
        town = Town(2 * draws.randrange(NUM_TOWNS // 2) + 1)
        yield town.document()
        yield town.founders_document()


def _name(number: int, ends: tuple[str, ...]) -> str:
    number = number * _SCATTER % NUM_TOWNS
    number, end = divmod(number, len(ends))
    first, second = divmod(number, _SYLLABLES)
    return (_syllable(first) + _syllable(second) + ends[end]).capitalize()


def _syllable(number: int) -> str:
    onset, vowel = divmod(number, len(_VOWELS))
    return _ONSETS[onset] + _VOWELS[vowel]
