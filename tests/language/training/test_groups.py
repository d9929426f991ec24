"""Advantages relative to the other responses to a prompt, on numbers set by hand, and trainings without a critic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, SequenceRolloutBuffer
from sb3_ppo_ext.language.envs.prompt_vec_env import group_ids_of
from sb3_ppo_ext.language.training.groups import (
    GROUP_ADVANTAGES,
    Episodes,
    Groups,
    episode_advantages,
    group_advantage,
    require_comparable,
)
from tests.language import setups, tiny
from tests.language.conversations import Conversation

# Two groups whose members are mixed: scores 1, 3, 8 (mean 4) and 2, 6 (mean 4).
IDS = np.array([7, 9, 7, 9, 7])
SCORES = np.array([1.0, 2.0, 3.0, 6.0, 8.0])
CENTRED = [-3.0, -2.0, -1.0, 2.0, 4.0]


def advantage_of(name: str, scores: Any = SCORES, ids: Any = IDS) -> list[float]:
    advantage: list[float] = group_advantage(name, np.asarray(scores), Groups(np.asarray(ids))).tolist()
    return advantage


def test_each_baseline_gives_the_numbers_of_its_formula() -> None:
    assert advantage_of("dr_grpo") == CENTRED
    # The mean of the others: 1 - (3 + 8) / 2, 2 - 6, 3 - (1 + 8) / 2, 6 - 2, 8 - (1 + 3) / 2.
    assert advantage_of("rloo") == pytest.approx([-4.5, -4.0, -1.5, 4.0, 6.0])
    # Unbiased variances (9 + 1 + 16) / 2 = 13 and (4 + 4) / 1 = 8.
    first, second = math.sqrt(13), math.sqrt(8)
    assert advantage_of("grpo") == pytest.approx([-3 / first, -2 / second, -1 / first, 2 / second, 4 / first], rel=1e-5)
    # All five have mean 4 and unbiased variance (9 + 4 + 1 + 4 + 16) / 4 = 8.5.
    assert advantage_of("batch") == pytest.approx([number / math.sqrt(8.5) for number in CENTRED], rel=1e-5)


@pytest.mark.parametrize("name", GROUP_ADVANTAGES)
def test_groups_of_equal_scores_have_no_advantage_at_all(name: str) -> None:
    # Sums of 0.1 are not exact, so that the mean of three differs from 0.1 in the last bit.
    found = advantage_of(name, [0.1, 5.0, 0.1, 7.0, 0.1])
    assert [found[0], found[2], found[4]] == [0.0, 0.0, 0.0] and found[1] < 0 < found[3]


@pytest.mark.parametrize("name", GROUP_ADVANTAGES)
def test_the_order_of_the_responses_does_not_matter(name: str) -> None:
    order = [3, 0, 4, 2, 1]
    expected = [advantage_of(name)[index] for index in order]
    assert advantage_of(name, SCORES[order], IDS[order]) == pytest.approx(expected, rel=1e-12)


def test_a_score_that_is_no_number_is_named_and_does_not_spread() -> None:
    with pytest.raises(ValueError, match="score of response 3 in group 9 is nan"):
        require_comparable(np.array([1.0, 2.0, 3.0, math.nan, 8.0]), Groups(IDS))
    with pytest.raises(ValueError, match="group 4 has one response"):
        require_comparable(np.array([1.0, 2.0, 3.0]), Groups(np.array([3, 4, 3])))


def test_an_episode_of_several_turns_is_one_member_with_the_sum_of_its_rewards() -> None:
    # Two environments, three steps. Environment 0: an episode of two steps, then one of one step; 1: one of three.
    starts = np.array([[1, 1], [0, 0], [1, 0]], np.float32)
    ended = np.array([[False, False], [True, False], [True, True]])
    episodes = Episodes.of(starts, ended)
    assert episodes.sum(np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])).tolist() == [3.0, 4.0, 70.0]
    reward = np.array([[[1.0, 0.0], [0.0, 10.0]], [[2.0, 9.0], [20.0, 0.0]], [[0.0, 4.0], [40.0, 0.0]]])
    mask = np.array([[[True, True], [True, True]], [[True, False], [True, True]], [[True, True], [True, False]]])
    reward = np.where(mask, reward, 0.0)
    ids = np.array([[5, 5], [5, 5], [5, 5]])
    found = episode_advantages("dr_grpo", reward, mask, ids, starts, ended)
    mean = (3 + 4 + 70) / 3
    expected = np.where(mask, np.array([[3, 70], [3, 70], [4, 70]])[..., None] - mean, 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_episode_that_the_rollout_cuts_is_refused() -> None:
    reward, mask = np.zeros((1, 2, 1)), np.ones((1, 2, 1), bool)
    ended = np.array([[True, False]])
    with pytest.raises(ValueError, match="1 of 2 episodes do not lie within the rollout"):
        episode_advantages("rloo", reward, mask, np.zeros((1, 2), np.int64), np.ones((1, 2)), ended)


def test_a_step_takes_each_prompt_group_size_times_and_names_the_groups() -> None:
    env = setups.env(6, group_size=3)
    observation = env.reset()
    assert isinstance(observation, dict)
    ids = observation["input_ids"]
    assert (ids[:3] == ids[0]).all() and (ids[3:] == ids[3]).all() and (ids[0] != ids[3]).any()
    assert env.group_ids.tolist() == [0, 0, 0, 1, 1, 1]
    _, _, _, infos = env.step(np.full((6, setups.LENGTH), tiny.EOS))
    assert [info["group_id"] for info in infos] == [0, 0, 0, 1, 1, 1]
    assert env.group_ids.tolist() == [2, 2, 2, 3, 3, 3]  # a prompt drawn again begins another group
    other = setups.env(6, group_size=3)
    other.load_state_dict(env.state_dict())
    env.step(np.full((6, setups.LENGTH), tiny.EOS))
    other.step(np.full((6, setups.LENGTH), tiny.EOS))
    assert other.group_ids.tolist() == env.group_ids.tolist() == [4, 4, 4, 5, 5, 5]


@pytest.mark.parametrize(("n_envs", "group_size", "message"), [
    (6, 4, "n_envs=6 is no multiple of group_size=4.*pass n_envs=8"),
    (6, 0, "group_size=0"),
])  # fmt: skip
def test_groups_that_do_not_fit_are_refused(n_envs: int, group_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        setups.env(n_envs, group_size=group_size)


def grouped(name: str = "rloo", group_size: int = 4, **options: Any) -> PPOX:
    settings = {"group_advantage": name, **options.pop("rollout_buffer_kwargs", {})}
    policy = {"value": "none", **options.pop("policy_kwargs", {})}
    environment = options.pop("environment", None) or setups.env(8, group_size=group_size)
    return setups.ppox(environment=environment, policy_kwargs=policy, rollout_buffer_kwargs=settings, **options)


REFUSED: dict[str, dict[str, Any]] = {
    "the environment has no groups": {"group_size": 1},
    "'value=\"none\" with group_advantage=None'": {"rollout_buffer_kwargs": {"group_advantage": None}},
    "value='shared': its baseline is the group": {"policy_kwargs": {"value": "shared"}},
    'ref_kl="both"': {"ref_kl_coef": 0.1, "rollout_buffer_kwargs": {"ref_kl": "both", "ref_kl_estimator": "k3"}},
    "whiten_rewards=True": {"rollout_buffer_kwargs": {"whiten_rewards": True}},
    "value_warmup=2": {"policy_kwargs": {"value_warmup": 2}},
    "value_lr_ratio=3": {"policy_kwargs": {"value_lr_ratio": 3.0}},
    "'grop'": {"name": "grop"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_contradictory_settings_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message.strip("'") if message.startswith("'v") else message):
        grouped(**REFUSED[message])


def test_without_a_critic_nothing_of_a_value_is_trained_and_every_response_is_counted() -> None:
    model = grouped()
    model.learn(32)
    assert isinstance(model.policy, LanguageModelPolicy) and not model.policy.value_parameters()
    assert model.num_timesteps == 32  # two rollouts of two steps of eight responses
    assert model.logger.name_to_value["train/value_loss"] == 0.0
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    for step, scores in enumerate(buffer.rewards):
        for rows in (slice(4), slice(4, 8)):
            assert len(set(buffer.group_ids[step, rows].tolist())) == 1
            others = (scores[rows].sum() - scores[rows]) / 3
            expected = np.where(buffer.masks[step, rows], (scores[rows] - others)[:, None], 0.0)
            np.testing.assert_allclose(buffer.advantages[step, rows], expected, atol=1e-5)


def test_without_any_difference_in_scores_the_parameters_stay() -> None:
    environment = setups.env_of(lambda prompts, responses: [0.1] * len(responses), 8, group_size=4)
    model = grouped("grpo", environment=environment)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(16)
    assert all(map(torch.equal, before, model.policy.parameters()))


def test_the_kl_in_the_reward_is_part_of_a_responses_score() -> None:
    model = grouped("dr_grpo", ref_kl_coef=0.5, n_epochs=4, learning_rate=1e-2)
    model.learn(32)
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    score = buffer.rewards - 0.5 * buffer.token_kl("k1").sum(-1)
    expected = score - np.repeat(score.reshape(2, 2, 4).mean(-1), 4, axis=-1)
    np.testing.assert_allclose(buffer.advantages[..., 0], expected, atol=1e-4)
    assert np.abs(score - buffer.rewards).max() > 1e-3


class GroupedConversation(Conversation):
    group_id = 3


def test_environments_of_ones_own_name_their_groups() -> None:
    env = DummyVecEnv([GroupedConversation] * 4)
    assert group_ids_of(env) is not None and group_ids_of(DummyVecEnv([Conversation] * 2)) is None
    kwargs: dict[str, Any] = {"policy_kwargs": {"model": tiny.model, "value": "none"}, "batch_size": 8, "seed": 0}
    kwargs["rollout_buffer_kwargs"] = {"group_advantage": "rloo"}
    model = PPOX(LanguageModelPolicy, env, n_steps=6, n_epochs=1, device="cpu", **kwargs)
    model.learn(24)
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    assert buffer.rewards.any()
    advantage = buffer.advantages[..., 0].reshape(2, 3, 4)  # two episodes of three turns in each environment
    np.testing.assert_array_equal(advantage, np.broadcast_to(advantage[:, :1], advantage.shape))
    with pytest.raises(ValueError, match="episodes do not lie within the rollout"):
        PPOX(LanguageModelPolicy, env, n_steps=4, n_epochs=1, device="cpu", **kwargs).learn(16)
