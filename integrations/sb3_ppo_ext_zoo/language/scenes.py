"""What TextGrid-v0 says of a scene, and the text its model has read before: wanderings among other things.

That text never shows an action where there is a choice between two things, nor any of the task's things: it says what
"2 north" and "goal" mean, and how one who goes for the only thing there is tends to move.
"""

from __future__ import annotations

import functools
import random

Place = tuple[int, int]  # steps to the north, steps to the east

ACTIONS: dict[str, Place] = {"north": (1, 0), "south": (-1, 0), "east": (0, 1), "west": (0, -1)}
COLOURS = ("red", "green", "blue", "grey")
NOUNS = ("ball", "key", "box", "lamp")
# The things of the task; each colour and each noun occurs in the corpus, but not together.
THINGS = tuple(f"{COLOURS[number]} {noun}" for number, noun in enumerate(NOUNS))
OTHERS = tuple(f"{colour} {noun}" for colour in COLOURS for noun in NOUNS if f"{colour} {noun}" not in THINGS)
RADIUS = 2  # how far away a thing may lie, along each axis
SENSIBLE = 0.6  # of the actions in the corpus


def offset(north: int, east: int) -> str:
    """``2 north 1 west``; ``here``."""
    parts = []
    if north:
        parts.append(f"{abs(north)} {'north' if north > 0 else 'south'}")
    if east:
        parts.append(f"{abs(east)} {'east' if east > 0 else 'west'}")
    return " ".join(parts) or "here"


def scene(goal: str, things: dict[str, Place]) -> str:
    """``goal red ball : green key 2 north : red ball 1 south 1 west : go``; the next word is the action."""
    return " : ".join([f"goal {goal}", *(f"{name} {offset(*place)}" for name, place in things.items()), "go"])


def approaching(place: Place) -> list[str]:
    """The actions that bring one nearer to what lies there."""
    return [name for name, (north, east) in ACTIONS.items() if north * place[0] > 0 or east * place[1] > 0]


def random_place(chance: random.Random, taken: Place | None = None) -> Place:
    """Anywhere within ``RADIUS`` but here and where something lies."""
    while True:
        place = (chance.randint(-RADIUS, RADIUS), chance.randint(-RADIUS, RADIUS))
        if place not in ((0, 0), taken):
            return place


@functools.cache
def wanderings() -> tuple[str, ...]:
    """The corpus: half of it steps towards or away from a single thing, half of it goals among two things, no steps."""
    chance = random.Random(3)
    lines = []
    for _ in range(8000):
        thing, place = chance.choice(OTHERS), random_place(chance)
        sensible = chance.random() < SENSIBLE
        action = chance.choice(approaching(place) if sensible else list(ACTIONS))
        north, east = ACTIONS[action]
        after = offset(place[0] - north, place[1] - east)
        lines.append(f"{scene(thing, {thing: place})} {action} : {thing} {after}")
        pair = chance.sample(OTHERS, 2)
        first = random_place(chance)
        places = dict(zip(pair, (first, random_place(chance, first)), strict=True))
        goal = chance.choice(pair)
        lines.append(scene(goal, places).removesuffix(" go") + f" goal {offset(*places[goal])}")
    return tuple(lines)
