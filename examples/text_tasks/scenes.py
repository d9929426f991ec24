"""The sentences of TextGrid-v0, and its pretraining text: walks among things that the task does not have.

The text shows what "2 north" and "goal" mean and how an agent walks to a single thing. It never shows an action where
there are two things.
"""

from __future__ import annotations

import functools
import random

Position = tuple[int, int]  # steps to the north, steps to the east

ACTIONS: dict[str, Position] = {"north": (1, 0), "south": (-1, 0), "east": (0, 1), "west": (0, -1)}
COLOURS = ("red", "green", "blue", "grey")
NOUNS = ("ball", "key", "box", "lamp")
# The things of the task; their colours and nouns occur in the corpus, in other pairs.
THINGS = tuple(f"{COLOURS[number]} {noun}" for number, noun in enumerate(NOUNS))
OTHERS = tuple(f"{colour} {noun}" for colour in COLOURS for noun in NOUNS if f"{colour} {noun}" not in THINGS)
RADIUS = 2  # the largest distance of a thing along each axis, in steps
SENSIBLE = 0.6  # fraction of actions in the corpus that approach their thing


def offset(north: int, east: int) -> str:
    """A relative position as text: ``2 north 1 west``, or ``here``."""
    words = []
    if north:
        words.append(f"{abs(north)} {'north' if north > 0 else 'south'}")
    if east:
        words.append(f"{abs(east)} {'east' if east > 0 else 'west'}")
    return " ".join(words) or "here"


def scene(goal: str, things: dict[str, Position]) -> str:
    """``goal red ball : green key 2 north : red ball 1 south 1 west : go``; the next word is the action."""
    return " : ".join([f"goal {goal}", *(f"{name} {offset(*position)}" for name, position in things.items()), "go"])


def approaching(position: Position) -> list[str]:
    """The actions that reduce the distance to this position."""
    return [name for name, (north, east) in ACTIONS.items() if north * position[0] > 0 or east * position[1] > 0]


def random_position(rng: random.Random, taken: Position | None = None) -> Position:
    """A position within ``RADIUS``, neither (0, 0) nor ``taken``."""
    while True:
        position = (rng.randint(-RADIUS, RADIUS), rng.randint(-RADIUS, RADIUS))
        if position not in ((0, 0), taken):
            return position


@functools.cache
def wanderings() -> tuple[str, ...]:
    """The corpus: half of the lines are steps with a single thing, half are goals among two things without a step."""
    rng = random.Random(3)
    lines = []
    for _ in range(8000):
        thing, position = rng.choice(OTHERS), random_position(rng)
        sensible = rng.random() < SENSIBLE
        action = rng.choice(approaching(position) if sensible else list(ACTIONS))
        north, east = ACTIONS[action]
        after = offset(position[0] - north, position[1] - east)
        lines.append(f"{scene(thing, {thing: position})} {action} : {thing} {after}")
        pair = rng.sample(OTHERS, 2)
        first = random_position(rng)
        positions = dict(zip(pair, (first, random_position(rng, first)), strict=True))
        goal = rng.choice(pair)
        lines.append(scene(goal, positions).removesuffix(" go") + f" goal {offset(*positions[goal])}")
    return tuple(lines)
