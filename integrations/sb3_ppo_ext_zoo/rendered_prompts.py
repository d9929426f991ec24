"""A prompt environment that shows its last response, for the scripts that enjoy and record agents."""

from __future__ import annotations

from typing import Any

import numpy as np

from sb3_ppo_ext.language import PromptEnv
from sb3_ppo_ext.language.envs.prompt_env import Observation


class RenderedPromptEnv(PromptEnv):
    """A ``PromptEnv`` with ``render``; a subclass sets ``render_mode`` and begins with ``last = ""``."""

    metadata = {"render_modes": ["human", "ansi"], "render_fps": 10}  # noqa: RUF012  # gymnasium's convention
    last: str

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
