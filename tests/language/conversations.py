"""An environment of several turns, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from sb3_ppo_ext.language import ResponseSpace, prompt_space
from tests.language import tiny

PROMPT = 8


class Conversation(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """Three turns; each observation is all that was said so far, and only the last turn is scored."""

    def __init__(self) -> None:
        self.observation_space = prompt_space(tiny.VOCABULARY, PROMPT)  # type: ignore[assignment]  # a Dict of arrays
        self.action_space: ResponseSpace = ResponseSpace(tiny.VOCABULARY, 3, tiny.EOS, tiny.PAD)

    def _observation(self) -> dict[str, np.ndarray]:
        said = self.said[-PROMPT:]
        ids = np.array([tiny.PAD] * (PROMPT - len(said)) + said)
        return {"input_ids": ids, "attention_mask": (np.arange(PROMPT) >= PROMPT - len(said)).astype(np.int8)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.said, self.turn = [3], 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> Any:
        kept = action[self.action_space.mask_of(action)]
        self.said += [*kept.tolist(), 7]  # 7 is the other side's answer
        self.turn += 1
        return self._observation(), float((kept < 8).sum()) * (self.turn == 3), self.turn == 3, False, {}
