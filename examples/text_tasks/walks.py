"""RandomWalks-v0: the shortest walk from a node to the goal, in a graph that the model has seen in random walks only.

The task of trlX (CarperAI/trlx, examples/randomwalks; after Chen et al. 2021, Decision Transformer, section 3): the
same graph, walks and score, so that the best score is 1.
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
from text_tasks.pretraining import Pretrained
from text_tasks.prompts import SharedTaskEnv

NODES, GOAL = 21, 0
LONGEST = 10  # nodes of a walk, the first one included
NAMES = "abcdefghijklmnopqrstu"


class Walks(NamedTuple):
    """A directed graph, and random walks in it."""

    edges: np.ndarray  # [NODES, NODES] of bool, from row to column; the goal leads only to itself
    walks: tuple[tuple[int, ...], ...]


@functools.cache
def random_walks(n_walks: int = 1000, p_edge: float = 0.1, seed: int = 1002) -> Walks:
    """Every node has an edge to another node. Walks start anywhere but at the goal and end there or after ``LONGEST``.

    trlX draws the same ones: the random numbers are used in its order.
    """
    rng = np.random.RandomState(seed)
    edges = np.zeros((NODES, NODES), bool)
    while not edges.any(axis=1).all():
        edges = rng.rand(NODES, NODES) > 1 - p_edge
        np.fill_diagonal(edges, False)
    edges[GOAL] = np.arange(NODES) == GOAL
    walks = []
    for _ in range(n_walks):
        node = GOAL
        while node == GOAL:
            node = rng.randint(NODES)
        walk = [node]
        while len(walk) < LONGEST and walk[-1] != GOAL:
            walk.append(int(rng.choice(np.nonzero(edges[walk[-1]])[0])))
        walks.append(tuple(walk))
    return Walks(edges, tuple(walks))


def nodes_to_goal(edges: np.ndarray) -> dict[int, int]:
    """The number of nodes on the shortest path to the goal, both ends included, for every node that has a path."""
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

    Nodes after the goal do not count, and a step without an edge makes the score 0; both are trlX's rules.
    """
    for step, node in enumerate(walk[:LONGEST]):
        if step and (node < 0 or not edges[walk[step - 1], node]):
            return 0.0
        if node == GOAL:
            return (LONGEST - 1 - step) / (LONGEST - shortest)
    return 0.0


def as_text(walk: Sequence[int]) -> str:
    """``walk c f a``."""
    return " ".join(["walk", *(NAMES[node] for node in walk)])


def nodes_of(text: str) -> list[int]:
    """The nodes that a text names; -1 stands for a word that is no node."""
    return [NAMES.index(name) if len(name) == 1 and name in NAMES else -1 for name in text.split()]


@functools.cache
def walks_as_text() -> tuple[str, ...]:
    """The corpus: 1000 random walks."""
    return tuple(map(as_text, random_walks().walks))


MODEL = Pretrained("RandomWalks-v0", walks_as_text, vocabulary=282, positions=16, steps=300)


def scores(prompts: Sequence[str], responses: Sequence[str], start: Sequence[int]) -> list[float]:
    """The optimality of each walk, [N]."""
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
        success=1.0,
    )


class RandomWalksEnv(SharedTaskEnv):
    """Each episode is one walk."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(task(), render_mode)


class RandomWalksPolicy(LanguageModelPolicy):
    """A ``LanguageModelPolicy`` whose model is pretrained for RandomWalks-v0 in ``pretraining_steps`` steps."""

    def __init__(self, *arguments: Any, pretraining_steps: int = MODEL.steps, **options: Any) -> None:
        super().__init__(*arguments, **{"model": replace(MODEL, steps=pretraining_steps), **options})
