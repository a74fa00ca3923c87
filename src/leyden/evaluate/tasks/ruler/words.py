"""Words that RULER's keys and lists are made of: Leyden's own choice. No word stands within another one."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words(
    """
    absent acidic active alert amber ample ancient angry anxious arctic arid austere autumnal awkward balmy basic
    blunt bold brave breezy brief bright brisk broad broken bronze calm candid careful casual cautious charming
    cheerful chilly civil clever cloudy clumsy coarse colossal comic compact complex cordial cosy crafty creamy
    crimson crisp crooked cruel curious curly daring dazzling decent delicate dense dim diligent distant docile
    double dreamy drowsy dusky dusty eager early earnest eastern elaborate elastic elegant eloquent empty endless
    enormous exact exotic faded faint fancy fearless fertile fierce flat fluffy fluent fond formal fragile fragrant
    frank frosty frugal fuzzy gallant generous gentle genuine gigantic glad gleaming gloomy glossy golden graceful
    grand grateful greedy gritty grumpy hardy harmless hasty heavy heroic hollow honest hopeful huge humble humid
    hungry ideal idle immense indigo infinite innocent jagged jolly joyful keen kind lavish lazy lively lofty lonely
    loyal lucky lunar lush magnetic majestic massive mellow merry mighty minty misty modest muddy mute naive narrow
    nervous neutral nimble noble noisy northern novel odd opaque orderly oval pale patient peaceful perfect placid
    plain playful polite precise pretty proper proud prudent pungent purple puzzled quaint quick quiet radiant rapid
    rare reckless refined regal remote rigid robust rosy rural rustic salty scarlet secret serene severe shallow
    sharp shiny shrewd shy silent silver simple sincere sleek sleepy slender slim slow smooth snowy sober soft solar
    solemn solid somber sparse spicy splendid stale stately steady sticky still stoic stormy stout strict strong
    stubborn sturdy subtle sudden sullen sunny superb supple swift tame tart tender tense thick thirsty thorough
    tidy timid tiny tranquil tropical trusty unique upbeat upper urban useful vague valiant vast vibrant vigilant
    violet vital vivid warm wary weary western wild wise witty wooden woolly worthy yellow young zealous
    """
)
NOUNS = _words(
    """
    acorn airport almond anchor apron artist attic avenue badger bagel balcony ballad bamboo banner barley barrel
    basket battery beacon beaver bishop blanket blossom bonfire bottle boulder bracelet branch breeze brick bridge
    broom bucket buffalo button cabbage cabin camera candle canoe canvas canyon caravan carpet carrot castle
    cathedral cavern cellar cello chapel cherry chess chimney cinema circus clarinet cliff clover cobbler coconut
    coffee comet compass concert copper coral cottage cotton cradle crane crater cricket crystal cupboard curtain
    cushion cymbal daisy dancer desert diamond dolphin donkey dragon drawer drum eagle eclipse elbow elephant ember
    emerald engine envelope estuary falcon farmer feather fender fennel ferry fiddle flagpole flannel flute forest
    fossil fountain fox furnace galaxy garlic gazelle geyser ginger glacier glove goblet granite grape gravel guitar
    hammer hammock harbour harvest hazel hedge helmet heron honey horizon hornet hurdle iceberg icicle igloo island
    ivory jacket jasmine jigsaw journal juniper kayak kettle kitchen kitten ladder lagoon lantern laurel lawyer
    leather lemon library lighthouse lilac lizard lobster locket lumber magpie mandolin mango mansion maple marble
    market meadow melon meteor minnow mirror mitten monsoon mosaic mountain museum mushroom mustard napkin needle
    nettle notebook nutmeg oasis oboe ocean olive onion opera orange orchard orchid ostrich otter oven oyster paddle
    padlock palace panther papaya parcel parrot pasture pebble pelican pencil pepper pheasant piano picnic pigeon
    pillow pirate planet plateau plum pocket poet pony poplar porcupine potato prairie pretzel pudding pulley
    pumpkin puppet pyramid quarry quilt rabbit radish railway rainbow raven reef ribbon river robin rocket rooster
    saddle sailor salmon sandal satchel saucer scarf scooter sculptor seagull shadow shelter shovel shrimp silk
    skate sleigh snail sparrow spider spinach sponge squirrel stable statue steeple stork sunset swallow tailor
    tambourine tangerine teapot temple tennis theatre thimble thistle thunder ticket timber toffee tomato torch
    tortoise trumpet tulip tunnel turnip turtle umbrella valley vanilla velvet village vineyard violin volcano wagon
    walnut walrus warbler waterfall weasel whistle willow window winter wizard woodland yogurt zebra zipper
    """
)
"""An even number."""
