"""TextGrid-v0: a sentence gives the positions of two things; the agent walks to the goal and avoids the other."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from sb3_ppo_ext.language import CandidatePolicy, TextObservation
from sb3_ppo_ext.unknown_arguments import named_arguments, refuse_unknown
from text_tasks.pretraining import Pretrained
from text_tasks.scenes import ACTIONS, THINGS, Position, random_position, scene, wanderings

MAX_STEPS = 8  # twice the farthest way
MAX_BYTES = 96

MODEL = Pretrained("TextGrid-v0", wanderings, vocabulary=309, positions=32, steps=1000, learning_rate=5e-3)


class Grid(gym.Env[str, int]):
    """An endless plane with positions relative to the agent. Either thing ends the episode; the goal gives reward 1.

    After ``MAX_STEPS`` steps the episode is truncated. ``is_success`` in the last step's info is the outcome.
    """

    metadata = {"render_modes": ["human", "ansi"], "render_fps": 10}  # noqa: RUF012  # gymnasium's convention

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Text(MAX_BYTES)
        self.action_space = spaces.Discrete(len(ACTIONS))  # type: ignore[assignment]  # of numpy integers
        self.goal = ""
        self.things: dict[str, Position] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Two things at random positions, one of them the goal."""
        super().reset(seed=seed)
        rng = random.Random(int(self.np_random.integers(2**32)))
        pair = rng.sample(THINGS, 2)
        first = random_position(rng)
        self.begin(rng.choice(pair), dict(zip(pair, (first, random_position(rng, first)), strict=True)))
        return self.text(), {}

    def begin(self, goal: str, things: dict[str, Position]) -> None:
        """Begins an episode with these things at these positions."""
        self.goal, self.things, self.steps = goal, dict(things), 0

    def text(self) -> str:
        """The observation: goal and positions as a sentence."""
        return scene(self.goal, self.things)

    def step(self, action: int) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One step to the north, south, east or west."""
        north, east = list(ACTIONS.values())[int(action)]
        self.things = {name: (row - north, column - east) for name, (row, column) in self.things.items()}
        self.steps += 1
        reached = self.things[self.goal] == (0, 0)
        over = (0, 0) in self.things.values()
        truncated = not over and self.steps >= MAX_STEPS
        info = {"is_success": reached} if over or truncated else {}
        return self.text(), float(reached), over, truncated, info

    def render(self) -> str | None:
        """The observation; printed in mode "human"."""
        if self.render_mode == "human":
            print(self.text())
            return None
        return self.text()


def text_grid(render_mode: str | None = None) -> TextObservation:
    """The environment with its sentences as bytes, a space that every VecEnv supports."""
    return TextObservation(Grid(render_mode), MAX_BYTES)


class TextGridPolicy(CandidatePolicy):
    """A ``CandidatePolicy`` whose model is pretrained for TextGrid-v0 in ``pretraining_steps`` steps."""

    def __init__(self, *arguments: Any, pretraining_steps: int = MODEL.steps, **options: Any) -> None:
        known = named_arguments(TextGridPolicy.__init__, CandidatePolicy.__init__)
        refuse_unknown(type(self).__name__, options, known)
        defaults = {
            "model": replace(MODEL, steps=pretraining_steps),
            "tokenizer": MODEL.tokenizer(),
            "candidates": [f" {name}" for name in ACTIONS],
        }
        super().__init__(*arguments, **{**defaults, **options})
