"""Episodes of several responses: what the environment says in between is read, not trained on."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, ResponseSpace, SequenceRolloutBuffer, prompt_space
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


def test_the_score_of_the_last_turn_reaches_the_first() -> None:
    model = PPOX(
        LanguageModelPolicy, DummyVecEnv([Conversation] * 4), n_steps=6, batch_size=12, n_epochs=1, gamma=1.0,
        gae_lambda=1.0, seed=0, device="cpu", policy_kwargs={"model": tiny.model},
    )  # fmt: skip
    model.learn(24)  # the ratio check has seen prompts that grow from turn to turn
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    # With gamma = lambda = 1 every token's return is what is still to come of its own episode: the last turn's score.
    for first in (0, 3):
        score = buffer.rewards[first + 2]
        assert not buffer.rewards[first : first + 2].any()
        for step in range(first, first + 3):
            expected = np.where(buffer.masks[step], score[:, None], 0.0)
            np.testing.assert_allclose(buffer.returns[step], expected, atol=1e-4)
    assert buffer.rewards.any()
