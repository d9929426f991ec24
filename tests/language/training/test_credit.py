from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_ppo_ext.language.training.credit import token_advantages, token_kl, token_rewards, whitened

Array = np.ndarray


def advantages_of_sb3(reward: Array, value: Array, last_value: Array, starts: Array, dones: Array) -> Array:
    buffer = RolloutBuffer(
        len(reward),
        spaces.Box(0, 1, (1,)),
        spaces.Discrete(2),
        "cpu",
        gae_lambda=0.9,
        gamma=0.8,
        n_envs=reward.shape[1],
    )
    buffer.rewards[:], buffer.values[:], buffer.episode_starts[:] = reward, value, starts
    buffer.compute_returns_and_advantage(torch.as_tensor(last_value), dones)
    return buffer.advantages


def test_responses_of_one_token_have_the_advantages_of_sb3() -> None:
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 6, 3)).astype(np.float32)
    starts = rng.random((6, 3)) < 0.3
    dones, last_value = np.array([True, False, False]), rng.normal(size=3).astype(np.float32)
    ended = np.concatenate((starts[1:], dones[None]))
    mine = token_advantages(
        reward[..., None], value[..., None], np.ones((6, 3, 1), bool),
        last_value=last_value, ended=ended, gamma=0.8, gae_lambda=0.9,
    )  # fmt: skip
    np.testing.assert_allclose(mine[..., 0], advantages_of_sb3(reward, value, last_value, starts, dones), rtol=1e-5)


def test_responses_of_several_turns_have_the_advantages_of_one_long_episode() -> None:
    # Two turns of 2 and 3 tokens, then the episode ends: SB3 sees five steps.
    rng = np.random.default_rng(1)
    reward, value = rng.normal(size=(2, 5, 1)).astype(np.float32)
    mask = np.array([[[True, True, False]], [[True, True, True]]])
    padded = [np.full((2, 1, 3), 99.0, np.float32) for _ in range(2)]
    for array, flat in zip(padded, (reward, value), strict=True):
        array[mask] = flat[:, 0]
    mine = token_advantages(
        padded[0],
        padded[1],
        mask,
        last_value=np.array([7.0]),
        ended=np.array([[False], [True]]),
        gamma=0.8,
        gae_lambda=0.9,
    )
    starts = np.zeros((5, 1))
    expected = advantages_of_sb3(reward, value, np.array([7.0], np.float32), starts, np.array([True]))
    np.testing.assert_allclose(mine[mask], expected[:, 0], rtol=1e-5)
    assert (mine[~mask] == 0).all()


def test_an_unfinished_episode_is_continued_by_the_last_value() -> None:
    # One token: delta = r + gamma V(next) - V = 1 + 0.5 * 4 - 2 = 1.
    advantage = token_advantages(
        np.ones((1, 1, 1)), np.full((1, 1, 1), 2.0), np.ones((1, 1, 1), bool),
        last_value=np.array([4.0]), ended=np.array([[False]]), gamma=0.5, gae_lambda=1.0,
    )  # fmt: skip
    assert advantage.item() == 1.0


def test_the_score_is_earned_by_the_last_token_and_the_kl_by_each() -> None:
    mask = np.array([[[True, True, False], [True, True, True]]])
    kl = np.array([[[1.0, -2.0, np.nan], [0.5, 0.0, 3.0]]])
    reward = token_rewards(np.array([[10.0, 20.0]]), mask, kl=kl, ref_kl_coef=0.1)
    # First response: -0.1 * 1, then 10 + 0.1 * 2; second: -0.05, 0, 20 - 0.3.
    np.testing.assert_allclose(reward, [[[-0.1, 10.2, 0.0], [-0.05, 0.0, 19.7]]], rtol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimators_average_to_the_exact_kl(estimator: str) -> None:
    # Over all six tokens, each as often as the policy samples it: sum_v p_v k(v) = KL(p || q) for k1 and k3.
    p, q = np.array([0.4, 0.2, 0.2, 0.1, 0.06, 0.04]), np.array([0.1, 0.3, 0.1, 0.2, 0.2, 0.1])
    each = token_kl(np.log(p), np.log(q), np.ones(6, bool), estimator)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(torch.tensor(p)), torch.distributions.Categorical(torch.tensor(q))
    )
    np.testing.assert_allclose((p * each).sum(), exact.item(), rtol=1e-9)
    assert estimator == "k1" or (each >= 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_as_a_reward_only_k1_has_the_gradient_of_the_kl(estimator: str) -> None:
    # The policy gradient of a penalty k on tokens is sum_v p_v k(v) d log p_v. That is d KL(p || q) for k1, because
    # sum_v p_v d k1 = 0. For k3, sum_v p_v d k3 = -sum_v q_v d log p_v = d KL(q || p) is missing, for k2 it is
    # sum_v p_v k1(v) d log p_v = d KL(p || q) itself: what is left of both is of second order in log p - log q.
    log_q = torch.tensor([0.1, 0.3, 0.1, 0.2, 0.2, 0.1], dtype=torch.float64).log()
    logits = (log_q + 0.01 * torch.tensor([1.0, -2.0, 0.0, 1.5, 0.5, -1.0])).requires_grad_()
    log_p = logits.log_softmax(-1)
    each = token_kl(log_p.detach().numpy(), log_q.numpy(), np.ones(6, bool), estimator)
    (of_reward,) = torch.autograd.grad((log_p.detach().exp() * torch.from_numpy(each) * log_p).sum(), logits)
    log_p = logits.log_softmax(-1)
    (of_kl,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), logits)
    if estimator == "k1":
        torch.testing.assert_close(of_reward, of_kl, rtol=1e-9, atol=1e-12)
    else:
        assert of_reward.norm() < 0.02 * of_kl.norm()


def test_k2_is_half_the_square() -> None:
    assert token_kl(np.array([-1.0]), np.array([-4.0]), np.ones(1, bool), "k2") == 4.5


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_over_the_tokens_alone(shift_mean: bool) -> None:
    values, mask = np.array([[1.0, 3.0, np.nan], [5.0, np.inf, -7.0]]), np.array([[1, 1, 0], [1, 0, 0]], bool)
    # Of 1, 3 and 5: mean 3, unbiased variance 4.
    expected = np.array([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]) + (0 if shift_mean else 3.0) * mask
    np.testing.assert_allclose(whitened(values, mask, shift_mean=shift_mean), expected, atol=1e-8)
