"""RandomWalks-v0: from a given node, write the shortest walk to the goal in a graph known from random walks only.

The task of trlX (CarperAI/trlx, examples/randomwalks; after Chen et al. 2021, Decision Transformer, section 3): its
graph, its walks and its score, so that the best score is known to be 1.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sb3_ppo_ext.language import LanguageModelPolicy
from sb3_ppo_ext.language.envs.prompt_env import PromptTask
from sb3_ppo_ext_zoo.language.pretraining import Pretrained
from sb3_ppo_ext_zoo.language.prompts import SharedTaskEnv

NODES, GOAL = 21, 0
LONGEST = 10  # nodes of a walk, the first one included
NAMES = "abcdefghijklmnopqrstu"


class Walks(NamedTuple):
    """A directed graph, and random walks in it."""

    edges: np.ndarray  # [NODES, NODES] of bool, from row to column; the goal leads only to itself
    walks: tuple[tuple[int, ...], ...]


@functools.cache
def random_walks(n_walks: int = 1000, p_edge: float = 0.1, seed: int = 1002) -> Walks:
    """Every node has an edge to another one. Walks start anywhere but at the goal, and end there or after ``LONGEST``.

    The same as trlX draws: its random numbers are used in its order.
    """
    chance = np.random.RandomState(seed)
    edges = np.zeros((NODES, NODES), bool)
    while not edges.any(axis=1).all():
        edges = chance.rand(NODES, NODES) > 1 - p_edge
        np.fill_diagonal(edges, False)
    edges[GOAL] = np.arange(NODES) == GOAL
    walks = []
    for _ in range(n_walks):
        node = GOAL
        while node == GOAL:
            node = chance.randint(NODES)
        walk = [node]
        while len(walk) < LONGEST and walk[-1] != GOAL:
            walk.append(int(chance.choice(np.nonzero(edges[walk[-1]])[0])))
        walks.append(tuple(walk))
    return Walks(edges, tuple(walks))


def nodes_to_goal(edges: np.ndarray) -> dict[int, int]:
    """Of every node that has a way to the goal: the nodes of the shortest one, both ends included."""
    count = {GOAL: 1}
    waiting = deque([GOAL])
    while waiting:
        node = waiting.popleft()
        for before in np.nonzero(edges[:, node])[0].tolist():
            if before not in count:
                count[before] = count[node] + 1
                waiting.append(before)
    return count


def optimality(walk: Sequence[int], edges: np.ndarray, shortest: int) -> float:
    """(LONGEST - nodes to the goal) / (LONGEST - nodes of the shortest walk): 1 is the shortest, 0 never arrives.

    What comes after the goal does not count; a step where there is no edge makes the walk worth 0. As in trlX.
    """
    for place, node in enumerate(walk[:LONGEST]):
        if place and (node < 0 or not edges[walk[place - 1], node]):
            return 0.0
        if node == GOAL:
            return (LONGEST - 1 - place) / (LONGEST - shortest)
    return 0.0


def as_text(walk: Sequence[int]) -> str:
    """``walk c f a``."""
    return " ".join(["walk", *(NAMES[node] for node in walk)])


def nodes_of(text: str) -> list[int]:
    """The nodes that a text names; -1 for what names none."""
    return [NAMES.index(name) if len(name) == 1 and name in NAMES else -1 for name in text.split()]


@functools.cache
def walks_as_text() -> tuple[str, ...]:
    """The corpus: 1000 random walks."""
    return tuple(map(as_text, random_walks().walks))


MODEL = Pretrained("RandomWalks-v0", walks_as_text, vocabulary=282, positions=16, steps=300)


def scores(prompts: Sequence[str], responses: Sequence[str], start: Sequence[int]) -> list[float]:
    """The optimality of each walk."""
    edges = random_walks().edges
    shortest = nodes_to_goal(edges)
    return [
        optimality([first, *nodes_of(response)], edges, shortest[first])
        for first, response in zip(start, responses, strict=True)
    ]


@functools.cache
def task() -> PromptTask:
    """One prompt for each node from which the goal can be reached in time."""
    shortest = nodes_to_goal(random_walks().edges)
    starts = [node for node in range(NODES) if node != GOAL and shortest.get(node, LONGEST) < LONGEST]
    return PromptTask(
        [as_text([start]) for start in starts],
        scores,
        MODEL.tokenizer(),
        max_new_tokens=LONGEST,
        columns={"start": starts},
    )


class RandomWalksEnv(SharedTaskEnv):
    """One walk at a time."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(task(), render_mode)


class RandomWalksPolicy(LanguageModelPolicy):
    """A ``LanguageModelPolicy`` whose model is the one made for RandomWalks-v0, after ``pretraining_steps`` steps."""

    def __init__(self, *arguments: Any, pretraining_steps: int = MODEL.steps, **options: Any) -> None:
        super().__init__(*arguments, **{"model": replace(MODEL, steps=pretraining_steps), **options})
