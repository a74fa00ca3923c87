"""Generated dialogues: a user asks for short creative texts, and an assistant writes them.

All wording is Leyden's own. Each text is lines that are put together from lists of words by a seed. Those that a model
is asked for later have their topic in every line, and no other exchange has that topic.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split(";"))


_KINDS = (
    ("Write a short poem about {topic}.", "Please repeat the {which} poem that you wrote about {topic}."),
    ("Describe {topic} in a few lines.", "Please repeat your {which} description of {topic}."),
    ("Write a little song for {topic}.", "Please repeat the {which} song that you wrote for {topic}."),
    ("Tell me something about {topic} before I sleep.", "Please repeat the {which} thing that you told me of {topic}."),
    ("Make up a prophecy about {topic}.", "Please repeat your {which} prophecy about {topic}."),
    ("Write a postcard that mentions {topic}.", "Please repeat the {which} postcard that mentions {topic}."),
)
"""What is asked for, and how it is asked for again."""

_ASKED_FOR_AGAIN = _words(
    """
    penguins lanterns foxes violins lighthouses tortoises kites comets teapots sailors windmills owls glaciers
    beekeepers trams mushrooms clocks otters carpets volcanoes hedgehogs bridges acrobats umbrellas camels
    orchards snails bakers marbles herons trumpets cactuses weavers icebergs pianos sparrows ferries jugglers
    chimneys dragonflies
    """
)
_TOPICS = _words(
    """
    rivers bicycles gardens letters pancakes mountains neighbours shadows boots libraries markets harbours stars
    winters staircases grandmothers candles deserts trains apples puddles roofs fishermen ballads meadows
    paintings elephants kitchens tunnels robots islands snowflakes wolves gates schools birthdays valleys
    fountains spiders Sundays potatoes horses museums mirrors farmers sunflowers whales towers picnics pigeons
    cellos maps
    """
)
_ADJECTIVES = _words(
    """
    silver patient crooked sleepy golden stubborn quiet enormous velvet curious frozen humble scarlet hollow
    gentle dusty brave pale clumsy ancient cheerful faded proud tiny restless polite copper lonely honest misty
    wild tender grey solemn bright forgetful nimble salty thirsty drowsy
    """
)
_VERBS = _words(
    """
    wander sing wait drift gather whisper tremble dance rest hide shine quarrel linger laugh hum glide stumble
    dream vanish argue march kneel bloom hurry doze sway listen return glow bow
    """
)
_PLACES = _phrases(
    """
    under the bridge;behind the mill;along the shore;above the rooftops;between two hills;beside the well;in the attic;
    across the frozen lake;at the edge of town;among tall grass;near the old station;inside the bell tower;
    on the lowest step;around the fire;beyond the border;below the balcony;in the baker's yard;over the orchard wall;
    by the blue door;at the end of the pier;in a borrowed boat;outside the theatre;on a narrow path;past the last lamp;
    within the ruined fort;upon the windowsill;in the middle of the square;through the north gate;at the crossroads;
    against the wind;under seven blankets;behind the curtain;in the captain's cabin;on the way home;beneath the stairs;
    at the foot of the cliff;in the neighbour's garden;along the railway;beside the sundial;far from the sea
    """
)
_TIMES = _phrases(
    """
    before dawn;at noon;every evening;after the storm;when the bells stop;all through March;on market days;
    as the tide turns;long past midnight;in the first frost;once a year;while the kettle sings;at low water;
    between two showers;on the shortest day;until the lamps go out;when nobody looks;late in autumn;
    as soon as it snows;from time to time
    """
)
_FORMS = (
    "{Topic} {verb} {place}",
    "{Adjective} {topic} {verb} {time}",
    "Nobody wakes the {topic} {place}",
    "{Time} the {adjective} {topic} {verb}",
    "I have seen {adjective} {topic} {place}",
)
_LINES, _FEWEST_FILLER_LINES, _MOST_FILLER_LINES = 3, 4, 14


@dataclass(frozen=True)
class Exchange:
    """A request and its answer.

    Attributes:
        request: the user's.
        answer: the assistant's.
        lines: of the answer, without the marks at their ends.
    """

    request: str
    answer: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Two answers to one request, which have no line in common, and how to ask for either of them again."""

    first: Exchange
    second: Exchange
    _again: str

    def question(self, which: str) -> str:
        """The request to repeat the ``"first"`` or the ``"second"`` of them."""
        return self._again.format(which=which)


def max_pairs() -> int:
    """How many pairs a dialogue can have, each of a topic of its own."""
    return len(_ASKED_FOR_AGAIN)


def make_pairs(draws: random.Random, count: int) -> list[Pair]:
    """Pairs of different topics."""
    pairs = []
    for topic in draws.sample(_ASKED_FOR_AGAIN, count):
        request, again = draws.choice(_KINDS)
        lines = _distinct_lines(draws, topic, 2 * _LINES)
        first, second = (_exchange(request, topic, part) for part in (lines[:_LINES], lines[_LINES:]))
        pairs.append(Pair(first, second, again.replace("{topic}", topic)))
    return pairs


def filler(seed: int) -> Iterator[Exchange]:
    """Exchanges without end about other topics; the same for the same seed."""
    draws = random.Random(f"dialogue {seed}")
    while True:
        topic, (request, _) = draws.choice(_TOPICS), draws.choice(_KINDS)
        count = draws.randint(_FEWEST_FILLER_LINES, _MOST_FILLER_LINES)
        yield _exchange(request, topic, [_line(draws, topic) for _ in range(count)])


def _exchange(request: str, topic: str, lines: list[str]) -> Exchange:
    return Exchange(request.format(topic=topic), ",\n".join(lines) + ".", tuple(lines))


def _distinct_lines(draws: random.Random, topic: str, count: int) -> list[str]:
    """Lines of which none holds another one."""
    lines: list[str] = []
    while len(lines) < count:
        line = _line(draws, topic)
        if not any(line in other or other in line for other in lines):
            lines.append(line)
    return lines


def _line(draws: random.Random, topic: str) -> str:
    adjective, time = draws.choice(_ADJECTIVES), draws.choice(_TIMES)
    return draws.choice(_FORMS).format(
        topic=topic,
        Topic=topic.capitalize(),
        adjective=adjective,
        Adjective=adjective.capitalize(),
        verb=draws.choice(_VERBS),
        place=draws.choice(_PLACES),
        time=time,
        Time=time.capitalize(),
    )
