"""The gymnasium environment of a prompt task: all environments of a process share one task and render as text."""

from __future__ import annotations

from typing import Any

import numpy as np

from sb3_ppo_ext.language import PromptEnv
from sb3_ppo_ext.language.envs.prompt_env import Observation, PromptTask
from sb3_ppo_ext.language.envs.prompts import PromptOrder


class SharedTaskEnv(PromptEnv):
    """A ``PromptEnv`` over a shared task, whose prompts are tokenized once."""

    metadata = {"render_modes": ["human", "ansi"], "render_fps": 10}  # noqa: RUF012  # gymnasium's convention

    def __init__(self, task: PromptTask, render_mode: str | None = None) -> None:
        self.task, self.render_mode = task, render_mode
        self.order = PromptOrder(len(task.source.texts), shuffle=True)
        self.observation_space = task.observation_space  # type: ignore[assignment]  # a Dict of arrays
        self.action_space = task.action_space
        self.last = ""

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Scores the response [L] and ends the episode."""
        observation, score, terminated, truncated, info = super().step(action)
        self.last = f"{info['prompt']}{info['response']}   {score:.2f}"
        return observation, score, terminated, truncated, info

    def render(self) -> str | None:
        """The last prompt, the response to it and its score; printed in mode "human"."""
        if self.render_mode == "human":
            print(self.last)
            return None
        return self.last
