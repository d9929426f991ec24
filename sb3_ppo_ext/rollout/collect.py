"""The collection of a rollout: ``OnPolicyAlgorithm.collect_rollouts`` bit for bit, without what each step wastes.

What a user may have replaced (the policy's ``forward``, the buffer's ``add``, ``_update_info_buffer``, the step of the
environment) is called as Stable-Baselines3 calls it. The arrays of the last rollout are not used again: whoever kept
them keeps their contents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.rollout.actors import Actor, EagerActor
from sb3_ppo_ext.rollout.advantages import compute_returns_and_advantage
from sb3_ppo_ext.rollout.device_buffers import DeviceRollouts
from sb3_ppo_ext.rollout.dummy_vec_env import step_of
from sb3_ppo_ext.vec_env.infos import Infos

SB3_COLLECT_ROLLOUTS = OnPolicyAlgorithm.collect_rollouts
SB3_COUNTING = OnPolicyAlgorithm._update_info_buffer
SB3_ADDS = (RolloutBuffer.add, DictRolloutBuffer.add)


# The names of the variables are Stable-Baselines3's: callbacks see them.
def collect_rollouts(
    self: OnPolicyAlgorithm,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: RolloutBuffer,
    n_rollout_steps: int,
    actor_of: Callable[[ActorCriticPolicy], Actor] = EagerActor,
) -> bool:
    """Fills the buffer by ``actor_of(policy)``; False if a callback stopped it before it was full."""
    begin(self, env, rollout_buffer)
    n_steps = 0
    callback.on_rollout_start()
    actor, step = actor_of(self.policy), step_of(env)
    while n_steps < n_rollout_steps:
        if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
            self.policy.reset_noise(env.num_envs)
        obs_tensor = as_tensor(self._last_obs, self.device)
        actions, sampled, values, log_probs = actor.act(obs_tensor)
        clipped_actions = within_bounds(self, actions)
        new_obs, rewards, dones, infos = step(clipped_actions)
        self.num_timesteps += env.num_envs
        callback.update_locals(locals())
        if not callback.on_step():
            return False
        count_episodes(self, infos, dones)
        n_steps += 1
        actions = actions.reshape(-1, 1) if isinstance(self.action_space, spaces.Discrete) else actions
        for idx, terminal_obs, terminal_value in cut_by_time_limit(self.policy, actor, dones, infos):  # noqa: B007
            rewards[idx] += self.gamma * terminal_value
        idx, done = len(dones) - 1, dones[-1]  # where the loop over all of them ends
        store(
            *(rollout_buffer, self._last_obs, actions, rewards, self._last_episode_starts, values, log_probs),
            on_device=(obs_tensor, sampled),
        )
        self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]  # no tuples
    values = actor.last_values(obs_as_tensor(new_obs, self.device), dones)  # type: ignore[arg-type]  # no tuples
    compute_returns_and_advantage(rollout_buffer, last_values=values, dones=dones)
    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


def begin(model: OnPolicyAlgorithm, env: VecEnv, buffer: RolloutBuffer) -> None:
    """An empty buffer, a policy in evaluation mode, and fresh noise where it explores by parameters."""
    model.policy.set_training_mode(False)
    buffer.reset()
    if model.use_sde:
        model.policy.reset_noise(env.num_envs)


def as_tensor(observation: Any, device: torch.device) -> Observation:
    """``obs_as_tensor``, without what it costs to name the CPU or to wait for another device.

    What is on its way there has arrived when the actions are read, before the environment writes anything new.
    """
    if device.type == "cpu" and isinstance(observation, np.ndarray):
        return torch.from_numpy(observation)
    if isinstance(observation, dict):
        return {key: as_tensor(part, device) for key, part in observation.items()}  # type: ignore[misc]  # no dicts
    if isinstance(observation, np.ndarray):
        return torch.from_numpy(observation).to(device, non_blocking=True)
    return obs_as_tensor(observation, device)


def is_replaced(inherited: Callable[..., bool]) -> bool:
    """Whether a bound ``collect_rollouts`` is another than Stable-Baselines3's: a mixin's, or patched in."""
    return getattr(inherited, "__func__", None) is not SB3_COLLECT_ROLLOUTS


def count_episodes(model: OnPolicyAlgorithm, infos: list[dict[str, Any]], dones: np.ndarray) -> None:
    """``_update_info_buffer``, which would have every info made where they are made when they are asked for."""
    if type(infos) is Infos and getattr(model._update_info_buffer, "__func__", None) is SB3_COUNTING:
        rows = infos.worth_counting(dones)
        if rows:
            model._update_info_buffer([infos[row] for row in rows], dones[rows])
    else:
        model._update_info_buffer(infos, dones)


def within_bounds(model: OnPolicyAlgorithm, actions: np.ndarray) -> np.ndarray:
    """The actions as the environment takes them: rescaled if they were squashed, else clipped to the space's bounds."""
    space = model.action_space
    if not isinstance(space, spaces.Box):
        return actions
    bounded: np.ndarray = (
        model.policy.unscale_action(actions) if model.policy.squash_output else np.clip(actions, space.low, space.high)
    )
    return bounded


def cut_by_time_limit(
    policy: ActorCriticPolicy, actor: Actor, dones: np.ndarray, infos: list[dict[str, Any]]
) -> Iterator[tuple[int, Observation, Tensor]]:
    """Index, last observation and its value for every episode that was cut: the return would have gone on from there.

    See https://github.com/DLR-RM/stable-baselines3/issues/633.
    """
    if not np.count_nonzero(dones):  # in a tenth of the time that flatnonzero takes
        return
    cut = [
        index
        for index in np.flatnonzero(dones).tolist()
        if infos[index].get("terminal_observation") is not None and infos[index].get("TimeLimit.truncated", False)
    ]
    if cut:
        observations: list[Observation] = [policy.obs_to_tensor(infos[one]["terminal_observation"])[0] for one in cut]
        yield from zip(cut, observations, actor.terminal_values(observations), strict=True)


def store(
    buffer: RolloutBuffer,
    obs: Any,
    action: np.ndarray,
    reward: np.ndarray,
    episode_start: Any,
    value: Tensor,
    log_prob: Tensor,
    *,
    on_device: tuple[Observation, Tensor],
) -> None:
    """``buffer.add(...)``; into Stable-Baselines3's own buffers each number is copied only once.

    ``on_device`` are observation and action where the policy has them, for buffers that are there too.
    """
    if isinstance(buffer, DeviceRollouts):
        buffer.add(*on_device, reward, episode_start, value, log_prob)
        return
    if type(buffer).add not in SB3_ADDS or "add" in vars(buffer) or log_prob.dim() == 0:
        buffer.add(obs, action, reward, episode_start, value, log_prob)
        return
    step = buffer.pos
    observations: Any = buffer.observations
    if isinstance(buffer.observation_space, spaces.Dict):
        for key, array in observations.items():
            array[step] = in_rows(obs[key], buffer.observation_space[key], array)
    else:
        observations[step] = in_rows(obs, buffer.observation_space, observations)
    buffer.actions[step] = action.reshape(buffer.actions.shape[1:])
    buffer.rewards[step] = reward
    buffer.episode_starts[step] = episode_start
    buffer.values[step] = value.cpu().numpy().reshape(-1)
    buffer.log_probs[step] = log_prob.cpu().numpy()
    buffer.pos += 1
    if buffer.pos == buffer.buffer_size:
        buffer.full = True


def in_rows(obs: np.ndarray, space: spaces.Space[Any], array: np.ndarray) -> np.ndarray:
    """Observations [N, ...]; Discrete ones come as [N] and are kept as [N, 1]."""
    return obs.reshape(array.shape[1:]) if isinstance(space, spaces.Discrete) else obs
