"""What the tests of the TorchRL side start from: a model that has collected, and its policy a step further."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from sb3_ppo_ext_torchrl import actor_module
from stable_baselines3.common.utils import obs_as_tensor
from tensordict import TensorDict, TensorDictBase

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.tensordicts import rollout_to_tensordict
from tests.cases import environments

POLICIES = {"vector": "MlpPolicy", "double": "MlpPolicy", "image": "CnnPolicy", "dict": "MultiInputPolicy"}
STEPS = 16


def collected(action: str = "box", observation: str = "vector", **arguments: Any) -> PPOX:
    """A model with a rollout of 16 steps of 2 environments in its buffer."""
    settings: dict[str, Any] = {"n_steps": STEPS, "batch_size": 2 * STEPS, "seed": 3, "device": "cpu", **arguments}
    model = PPOX(POLICIES[observation], environments(observation, action), **settings)
    _, callback = model._setup_learn(1000, None)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=STEPS)
    return model


def rollout_of(model: PPOX) -> TensorDict:
    """The model's rollout [T, N], with the parameters of the distribution it was drawn from and its end."""
    assert model._last_obs is not None and model._last_episode_starts is not None
    with torch.no_grad():
        last = model.policy.predict_values(obs_as_tensor(model._last_obs, model.device))
        batch = rollout_to_tensordict(model.rollout_buffer, last_values=last, dones=model._last_episode_starts)
        actor_module(model.policy).get_dist_params(batch)
    return batch


def rows_of(model: PPOX) -> TensorDictBase:
    """The rollout as Stable-Baselines3 flattens it: environment after environment."""
    return rollout_of(model).transpose(0, 1).flatten(0, 1)


def moved(model: PPOX, by: float = 0.05) -> None:
    """Another policy than the one that collected, so that ratios are not 1 and penalties not 0."""
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(by * torch.randn_like(parameter))


def sb3_observation(batch: TensorDict, space: spaces.Space[Any]) -> Any:
    """The observations as Stable-Baselines3's policies take them."""
    observation = batch["observation"]
    return dict(observation.items()) if isinstance(space, spaces.Dict) else observation
