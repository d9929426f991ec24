"""The right answers, given: what as many sequences teach where nothing has to be found by trying."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import update_learning_rate

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv
from sb3_ppo_ext.language.envs.prompt_env import PromptTask


def padded(answers: Sequence[Sequence[int]], task: PromptTask) -> np.ndarray:
    """The token ids of the answers as responses [P, L]; an answer that is longer than a response is an error."""
    rows = np.full((len(answers), task.action_space.max_new_tokens), task.vocabulary.pad, np.int64)
    for row, answer in zip(rows, answers, strict=True):
        row[: len(answer)] = answer
    return rows


def minibatches(count: int, size: int, total: int, seed: int) -> Iterator[np.ndarray]:
    """Indices below ``count``, ``total`` in all, in another order each time that all have been drawn."""
    random = np.random.default_rng(seed)
    order = np.concatenate([random.permutation(count) for _ in range(-(-total // count))])[:total]
    return (order[start : start + size] for start in range(0, total, size))


def supervise(model: PPOX, answers: Sequence[Sequence[int]], sequences: int, callback: BaseCallback) -> None:
    """Raises the log-probability of the right responses by the model's own optimizer, a step per minibatch."""
    policy, env = model.policy, model.get_env()
    assert isinstance(policy, LanguageModelPolicy) and isinstance(env, PromptVecEnv)
    responses = torch.as_tensor(padded(answers, env.task))
    callback.init_callback(model)
    callback.on_training_start({}, {})
    policy.set_training_mode(True)
    for rows in minibatches(len(answers), model.batch_size, sequences, model.seed or 0):
        callback.on_rollout_start()
        update_learning_rate(policy.optimizer, model.lr_schedule(1 - model.num_timesteps / sequences))
        observation, _ = policy.obs_to_tensor(env.task.observe(rows))
        log_prob = policy.evaluate_actions(observation, responses[rows])[1]
        policy.optimizer.zero_grad()
        (-log_prob.mean()).backward()
        policy.optimizer.step()
        model.num_timesteps += len(rows)
    callback.on_training_end()
