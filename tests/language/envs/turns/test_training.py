"""Trainings over games of several turns: credit, success, groups, frozen opponents, resumed runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import (
    LanguageModelPolicy,
    PolicyOpponent,
    SequenceRolloutBuffer,
    TextGameEnv,
    conversation_vec_env,
)
from tests.checkpoints.environments.continuing import goes_on_exactly
from tests.language import chats
from tests.language.games import HigherLower, Race

pytestmark = pytest.mark.filterwarnings("ignore:HigherLower failed", "ignore::sb3_ppo_ext.TrainingWarning")


def games(n_envs: int = 4, game: Any = HigherLower, group_size: int = 1, **options: Any) -> VecEnv:
    settings: dict[str, Any] = {"max_new_tokens": 2, "max_prompt_length": 160, **options}
    return conversation_vec_env(
        partial(TextGameEnv, game, chats.tokenizer(), **settings), n_envs, group_size=group_size
    )


def trained(env: VecEnv, timesteps: int = 16, callback: Any = None, **options: Any) -> PPOX:
    settings: dict[str, Any] = {"policy_kwargs": {"model": chats.model, **options.pop("policy_kwargs", {})}, **options}
    model = PPOX(
        LanguageModelPolicy, env, n_steps=4, batch_size=8, n_epochs=1, gamma=1.0, seed=0, device="cpu", **settings
    )
    return model.learn(timesteps, callback)


class Forgiving(HigherLower):
    """Takes any text; a game has three turns."""

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        done, info = super().step(action if action.isdecimal() and action.isascii() else "99")
        return done, info


def test_credit_of_the_last_turn_reaches_the_first_and_success_is_logged() -> None:
    model = trained(games(game=Forgiving), rollout_buffer_kwargs={"turn_lambda": 1.0})
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    # Three turns to an episode: with gamma = lambda = 1 the return of each token is the score at the end of its own.
    score = buffer.rewards[2]
    assert (score < 0).all() and not buffer.rewards[:2].any()  # 99 is far from every number
    for step in range(3):
        expected = np.where(buffer.masks[step], score[:, None], 0.0)
        np.testing.assert_allclose(buffer.returns[step], expected, rtol=1e-4)
    assert model.ep_success_buffer and not any(model.ep_success_buffer)


def test_members_of_a_group_play_the_same_games() -> None:
    env = games(6, game=Forgiving, group_size=3)
    env.seed(11)
    observation = env.reset()
    assert isinstance(observation, dict)
    rows = observation["input_ids"]
    assert (rows[:3] == rows[0]).all() and (rows[3:] == rows[3]).all() and (rows[0] != rows[3]).any()
    assert env.get_attr("group_id") == [0, 0, 0, 1 << 32, 1 << 32, 1 << 32]
    unseeded = games(6, group_size=3).reset()
    assert isinstance(unseeded, dict) and (unseeded["input_ids"][:3] == unseeded["input_ids"][0]).all()


def test_groups_of_games_without_a_critic() -> None:
    settings = {"group_advantage": "rloo"}
    model = PPOX(
        LanguageModelPolicy, games(4, game=Forgiving, group_size=2), n_steps=6, batch_size=8, n_epochs=1, device="cpu",
        policy_kwargs={"model": chats.model, "value": "none"}, rollout_buffer_kwargs=settings,
    ).learn(24)  # fmt: skip
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    score = buffer.rewards.reshape(2, 3, 4).sum(axis=1)  # two episodes of three turns
    others = score[:, [1, 0, 3, 2]]
    np.testing.assert_allclose(buffer.advantages[..., 0].reshape(2, 3, 4)[:, 0], score - others, atol=1e-6)
    with pytest.raises(ValueError, match="the environment has no groups"):
        trained(games(4), policy_kwargs={"value": "none"}, rollout_buffer_kwargs=settings)
    with pytest.raises(ValueError, match="n_envs=5 is no multiple of group_size=2"):
        games(5, group_size=2)


def test_a_frozen_copy_of_the_policy_plays_the_other_seat() -> None:
    opponent = PolicyOpponent(chats.tokenizer(), every=2)
    env = games(2, game=Race, opponents=opponent)
    with pytest.raises(ValueError, match="no policy yet: pass before="):
        opponent("seat 1")
    model = trained(env, 24, opponent, learning_rate=1e-2)
    assert opponent.rollouts == 3 and opponent.policy is not None
    assert isinstance(model.policy, LanguageModelPolicy)
    copied, present = (next(iter(policy.lm.parameters())) for policy in (opponent.policy, model.policy))
    assert not torch.equal(copied, present)  # taken after the second rollout, trained since
    again = PolicyOpponent(chats.tokenizer(), every=2)
    again.load_state_dict(opponent.state_dict())
    again.init_callback(model)
    again._on_training_start()
    assert again.rollouts == 3 and again.policy is not None
    assert all(map(np.array_equal, again.policy.state_dict().values(), opponent.policy.state_dict().values()))


def test_games_go_on_from_a_checkpoint_within_an_episode() -> None:
    assert goes_on_exactly(partial(games, 2, game=Forgiving), before=10, after=20)
    assert goes_on_exactly(partial(games, 2, game=Race, opponents=str.strip, seat=None), before=10, after=20)
