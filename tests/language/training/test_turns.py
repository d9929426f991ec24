"""Episodes of several responses: what the environment says in between is read, not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import BaseCallback
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


class Ends(BaseCallback):
    """Scores as the environments gave them, and the observations of the episodes that a time limit has cut."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[np.ndarray] = []
        self.cut: list[list[Any]] = []

    def _on_step(self) -> bool:
        self.scores.append(self.locals["rewards"].copy())
        infos = self.locals["infos"]
        self.cut.append([info["terminal_observation"] if info.get("TimeLimit.truncated") else None for info in infos])
        return True


def test_a_time_limit_is_continued_by_the_value_and_an_end_is_not() -> None:
    """Conversations of three turns: those with a limit of two are cut, and the others end."""
    model = PPOX(
        LanguageModelPolicy, DummyVecEnv([lambda: TimeLimit(Conversation(), 2), Conversation] * 2), n_steps=6,
        batch_size=12, n_epochs=1, gamma=0.9, gae_lambda=1.0, learning_rate=0.0, seed=0, device="cpu",
        policy_kwargs={"model": tiny.model}, compile=False,
    )  # fmt: skip
    policy, ends = model.policy, Ends()
    assert isinstance(policy, LanguageModelPolicy)
    with torch.no_grad():
        for parameter in policy.value_parameters():
            parameter.add_(0.5)  # they begin at 0
    model.learn(24, ends)
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    counts = {0: 3, 1: 0, 2: 3, 3: 0}  # in six steps
    for env, times in counts.items():
        cut = [step for step in range(6) if ends.cut[step][env] is not None]
        assert len(cut) == times
        for step in range(6):
            expected = ends.scores[step][env]
            if step in cut:
                last = {name: torch.as_tensor(array)[None] for name, array in ends.cut[step][env].items()}
                with torch.no_grad():
                    value = float(policy.predict_values(last))
                assert abs(value) > 1e-2
                expected = expected + 0.9 * value
            np.testing.assert_allclose(buffer.rewards[step, env], expected, rtol=1e-4, atol=1e-5)
            ended = step in cut or (times == 0 and step % 3 == 2)
            if ended:  # nothing else follows the last token
                last_token = buffer.masks[step, env].sum() - 1
                np.testing.assert_allclose(buffer.returns[step, env, last_token], expected, rtol=1e-4, atol=1e-5)
