"""The collection of a rollout: ``OnPolicyAlgorithm.collect_rollouts`` bit for bit, without what each step wastes.

What a user may have replaced (the policy's ``forward``, the buffer's ``add``, ``_update_info_buffer``, the step of the
environment) is called as Stable-Baselines3 calls it. Every rollout has new arrays: those of the last one, which a
callback may hold, keep their contents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from sb3_ppo_ext.host.sb3 import counts_episodes_as_sb3
from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.rollout.actors import Actor, EagerActor
from sb3_ppo_ext.rollout.advantages import compute_returns_and_advantage
from sb3_ppo_ext.rollout.lost_rows import forget_lost, is_lost, note_lost
from sb3_ppo_ext.rollout.storing import storing
from sb3_ppo_ext.rollout.token_buffer import TokenRolloutBuffer
from sb3_ppo_ext.rollout.vec_env_step import step_of
from sb3_ppo_ext.vec_env.infos import Infos


# The names of the variables are Stable-Baselines3's: callbacks see them.
def collect_rollouts(
    self: OnPolicyAlgorithm,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: RolloutBuffer,
    n_rollout_steps: int,
    actor_of: Callable[[ActorCriticPolicy], Actor] = EagerActor,
    *,
    begun: int | None = None,
    after_step: Callable[[int], None] | None = None,
    division: Division | None = None,
) -> bool:
    """Fills the buffer with the steps of ``actor_of(policy)``; False if a callback stopped it before it was full.

    ``begun`` steps are in the buffer already (None: the rollout has not begun); ``after_step`` is called with their
    number after each step of the environments.
    """
    division = division or Division(env.num_envs, partial(self.policy.reset_noise, env.num_envs))
    if begun is None:
        begin(self, rollout_buffer, division)
        callback.on_rollout_start()
    n_steps = begun or 0
    actor, bounded = actor_of(self.policy), bounds_of(self, env.num_envs)
    step, store = step_of(env), storing(rollout_buffer)
    leaves_out = isinstance(rollout_buffer, TokenRolloutBuffer)  # steps, maybe
    while n_steps < n_rollout_steps:
        if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
            division.reset_noise()
        obs_tensor = as_tensor(self._last_obs, self.device)
        actions, sampled, values, log_probs = actor.act(obs_tensor)
        clipped_actions = bounded(actions)
        new_obs, rewards, dones, infos = step(clipped_actions)
        self.num_timesteps += division.all_envs
        callback.update_locals(locals())
        if not callback.on_step():
            return False
        count_episodes(self, infos, dones)
        n_steps += 1
        actions = actions.reshape(-1, 1) if isinstance(self.action_space, spaces.Discrete) else actions
        note_lost(rollout_buffer, rewards, values, dones, infos)
        for idx, terminal_obs, terminal_value in cut_by_time_limit(self.policy, actor, dones, infos):  # noqa: B007
            rewards[idx] += self.gamma * terminal_value
        idx, done = len(dones) - 1, dones[-1]  # where the loop over all of them ends
        store(
            *(self._last_obs, actions, rewards, self._last_episode_starts, values, log_probs),
            on_device=(obs_tensor, sampled),
        )
        n_steps = rollout_buffer.pos if leaves_out else n_steps
        self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]  # no tuples
        if after_step is not None:
            after_step(n_steps)
    values = actor.last_values(obs_as_tensor(new_obs, self.device), dones)  # type: ignore[arg-type]  # no tuples
    compute_returns_and_advantage(rollout_buffer, last_values=values, dones=dones)
    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


class Division(NamedTuple):
    """What a rollout of some of a run's environments depends on."""

    all_envs: int  # of all processes
    reset_noise: Callable[[], None]  # gSDE's


def begin(model: OnPolicyAlgorithm, buffer: RolloutBuffer, division: Division) -> None:
    """Empties the buffer, puts the policy into evaluation mode and, with gSDE, draws its exploration matrices."""
    model.policy.set_training_mode(False)
    buffer.reset()
    forget_lost(buffer)
    if model.use_sde:
        division.reset_noise()


def as_tensor(observation: Any, device: torch.device) -> Observation:
    """The result of ``obs_as_tensor``, without a call that names the CPU and without waiting for another device.

    A copy to a device is complete when the actions are read, before the environment writes anything new.
    """
    if device.type == "cpu" and isinstance(observation, np.ndarray):
        return torch.from_numpy(observation)
    if isinstance(observation, dict):
        return {key: as_tensor(array, device) for key, array in observation.items()}  # type: ignore[misc]  # no dicts
    if isinstance(observation, np.ndarray):
        return torch.from_numpy(observation).to(device, non_blocking=True)
    return obs_as_tensor(observation, device)


def count_episodes(model: OnPolicyAlgorithm, infos: list[dict[str, Any]], dones: np.ndarray) -> None:
    """Calls ``_update_info_buffer``, with those infos alone that it reads where infos are made on first access."""
    if type(infos) is Infos and counts_episodes_as_sb3(model):
        rows = infos.worth_counting(dones)
        if rows:
            model._update_info_buffer([infos[row] for row in rows], dones[rows])
    else:
        model._update_info_buffer(infos, dones)


def bounds_of(model: OnPolicyAlgorithm, n_envs: int) -> Callable[[np.ndarray], np.ndarray]:
    """Makes actions those for the environment: rescaled if the policy squashes them, else clipped to the bounds."""
    space = model.action_space
    if not isinstance(space, spaces.Box):
        return lambda actions: actions
    if model.policy.squash_output:
        unscale: Callable[[np.ndarray], np.ndarray] = model.policy.unscale_action
        return unscale
    # An entry per action: to clip takes half the time of bounds that are broadcast.
    low, high = (np.repeat(bound[None], n_envs, axis=0) for bound in (space.low, space.high))
    return lambda actions: actions.clip(low, high)


def cut_by_time_limit(
    policy: ActorCriticPolicy, actor: Actor, dones: np.ndarray, infos: list[dict[str, Any]]
) -> Iterator[tuple[int, Observation, Tensor]]:
    """Index, last observation and its value for every episode that a time limit has cut: its return continues there.

    The reason is in https://github.com/DLR-RM/stable-baselines3/issues/633.
    """
    if not np.count_nonzero(dones):  # takes a tenth of the time of flatnonzero
        return
    cut = [
        index
        for index in np.flatnonzero(dones).tolist()
        if infos[index].get("terminal_observation") is not None
        and infos[index].get("TimeLimit.truncated", False)
        and not is_lost(infos[index])
    ]
    if cut:
        last: list[Any] = [infos[index]["terminal_observation"] for index in cut]
        observations: list[Observation] = [policy.obs_to_tensor(observation)[0] for observation in last]
        yield from zip(cut, observations, actor.terminal_values(observations), strict=True)
