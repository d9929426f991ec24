"""The value function trained alone: in further epochs of an update, and before the first one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, ValuePretraining
from sb3_ppo_ext.language.training.critic import explained_by_position
from tests.language import setups, tiny


def states_of(model: PPOX) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    of_model, values = policy.model_parameters(), policy.value_parameters()
    return [p.detach().clone() for p in of_model], [p.detach().clone() for p in values]


def equal(these: list[torch.Tensor], those: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, these, those))


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_critic_epochs_are_steps_of_the_value_function_alone(value: str) -> None:
    settings: dict[str, Any] = {"policy_kwargs": {"value": value}, "n_epochs": 1}
    few = setups.ppox(rollout_buffer_kwargs={"critic_epochs": 1}, **settings).learn(16)
    more = setups.ppox(rollout_buffer_kwargs={"critic_epochs": 3}, **settings).learn(16)
    (of_model, values), (same, more_values) = states_of(few), states_of(more)
    assert equal(of_model, same) and not equal(values, more_values)
    policy = more.policy
    assert isinstance(policy, LanguageModelPolicy)
    # One rollout of 16 responses in minibatches of 4.
    counts = {float(policy.optimizer.state[p]["step"]) for p in policy.model_parameters()}
    assert counts == {4.0}
    assert {float(policy.optimizer.state[p]["step"]) for p in policy.value_parameters()} == {12.0}
    assert all(p.requires_grad for p in policy.model_parameters())


def of_first_prompt_token(prompts: list[list[int]], responses: list[list[int]]) -> list[float]:
    """A score that the prompt alone decides, so that it can be predicted before the first token."""
    return [float(prompt[0]) for prompt in prompts]


def test_pretraining_fits_the_values_and_leaves_the_model() -> None:
    callback = ValuePretraining(256, epochs=30, learning_rate=1e-2)
    environment = setups.env_of(of_first_prompt_token)
    model = setups.ppox(environment=environment, policy_kwargs={"value": "separate"}, batch_size=16)
    of_model, values = states_of(model)
    model.set_logger(Logger(None, []))
    model._setup_learn(16)
    callback.init_callback(model)
    callback.on_training_start({}, {})
    now, fitted = states_of(model)
    assert equal(of_model, now) and not equal(values, fitted)
    assert model.num_timesteps == 256 and not model.policy.optimizer.state
    assert model.policy.optimizer.param_groups[0]["lr"] == 1e-3
    records = model.logger.name_to_value
    assert records["critic/explained_variance"] > 0.5
    assert records["critic/explained_variance_first"] > 0.5
    assert 1 <= records["critic/pretraining_epochs"] <= 30


def test_values_that_only_become_worse_are_restored() -> None:
    environment = setups.env_of(lambda prompts, responses: [0.0] * len(responses))
    model = setups.ppox(environment=environment, policy_kwargs={"value": "separate"})
    _, values = states_of(model)
    model.set_logger(Logger(None, []))
    model._setup_learn(16)
    callback = ValuePretraining(32, epochs=4)
    callback.init_callback(model)
    callback.on_training_start({}, {})
    assert equal(values, states_of(model)[1])  # the values are 0 from the start, which nothing can improve
    assert "critic/pretraining_epochs" not in model.logger.name_to_value


def test_pretraining_is_done_once_and_counted() -> None:
    model = setups.ppox(n_epochs=1)
    callback = ValuePretraining(32, epochs=4, patience=2)
    model.learn(48, callback=callback)
    assert model.num_timesteps == 48  # 32 for the values, and a rollout of 16
    assert model._n_updates == 1  # on which alone the model has learned
    model.learn(16, callback=callback, reset_num_timesteps=False)
    assert model.num_timesteps == 64


def test_explained_variance_is_given_by_position() -> None:
    mask = np.array([[True, False, False], [True, True, False], [True, True, True]])
    target = np.array([[1.0, 9, 9], [2.0, 2.0, 9], [3.0, 3.0, 3.0]])
    value = np.array([[1.0, 0, 0], [2.0, 0.0, 0], [3.0, 0.0, 2.0]])
    found = explained_by_position(value, target, mask)
    assert found["explained_variance_first"] == 1.0
    # The last values are 1, 0 and 2: 1 - Var(0, 2, 1) / Var(1, 2, 3) = 0.
    assert found["explained_variance_last"] == pytest.approx(0.0)


def test_fewer_epochs_for_the_critic_are_refused() -> None:
    with pytest.raises(ValueError, match="critic_epochs=1 with n_epochs=2"):
        setups.ppox(rollout_buffer_kwargs={"critic_epochs": 1})


def test_pretraining_needs_a_value_function() -> None:
    wrong: tuple[dict[str, Any], ...] = ({"responses": 0}, {"epochs": 1.5}, {"learning_rate": -1.0})
    for arguments in wrong:
        with pytest.raises(ValueError, match=next(iter(arguments))):
            ValuePretraining(**arguments)
    model = setups.ppox(
        environment=setups.env(8, group_size=4), policy_kwargs={"value": "none", "model": tiny.model},
        rollout_buffer_kwargs={"group_advantage": "rloo"},
    )  # fmt: skip
    with pytest.raises(ValueError, match="with a value function"):
        model.learn(16, callback=ValuePretraining())
