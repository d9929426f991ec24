"""Episodes of several responses: what the environment says in between is read, not trained on."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, SequenceRolloutBuffer
from tests.language import tiny
from tests.language.conversations import Conversation


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
