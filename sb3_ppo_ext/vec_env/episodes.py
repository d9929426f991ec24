"""SB3's episodes over environments that step as one batch; work per environment is done where an episode ends."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_ppo_ext.vec_env.accepted import require_start_at_zero
from sb3_ppo_ext.vec_env.infos import Info, Infos, info_row, unmade_infos

Array = npt.NDArray[Any]
Observation = Array | dict[str, Array]


class Step(NamedTuple):
    """A step of all environments, rows in their order; ``observation`` is a copy that may be written to."""

    observation: Observation
    reward: Array
    terminated: Array
    truncated: Array
    info: Info


class EpisodeVecEnv(VecEnv):
    """A VecEnv over one object that steps all environments, with the episode statistics of ``Monitor``.

    ``infos`` has a new dict per environment and step, as over ``DummyVecEnv`` (values are NumPy's where the
    environment's columns are). Such a dict is made when it is first read and costs nothing before. Where an episode
    ended it has ``terminal_observation``, ``TimeLimit.truncated`` and ``episode`` too, and in
    no other step. The columns of the latest step, for all environments, are ``step_info``.

    With ``monitor_file`` every finished episode is also a line in that file (``monitor.csv`` is appended to the name).
    """

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        monitor_file: str | None,
        name: str,
    ) -> None:
        super().__init__(num_envs, observation_space, action_space)
        self.step_info: Info = {}
        self._unmade = (None,) * num_envs
        self._returns = np.zeros(num_envs)
        self._steps = 0
        self._first_steps = np.zeros(num_envs, np.int64)  # of the episodes that go on, counted by _steps
        self._started = time.time()
        self._actions: Array = np.zeros(0)
        header: dict[str, float | str] = {"t_start": self._started, "env_id": name}
        self._monitor = ResultsWriter(monitor_file, header=header) if monitor_file is not None else None

    @abstractmethod
    def _begin(self) -> tuple[Observation, Info]:
        """Starts an episode everywhere, with ``self._seeds`` and ``self._options``."""

    @abstractmethod
    def _advance(self, actions: Array) -> Step:
        """Steps every environment once, none of which has ended before."""

    @abstractmethod
    def _restart(self, ended: Array, step: Step) -> tuple[list[Observation], Info]:
        """Starts the next episode in the rows ``ended`` and in no other.

        Writes its first observations into ``step.observation`` and ``self.reset_infos``; returns copies of the last
        observations of the episodes that ended, and the info of their last step.
        """

    def reset(self) -> VecEnvObs:
        """Starts an episode everywhere; seeds and options are used once."""
        observation, info = self._begin()
        self.reset_infos = [self._info_of(info, row) for row in range(self.num_envs)]
        self._returns[:] = 0
        self._first_steps[:] = self._steps
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: Array) -> None:
        """Stores the actions for ``step_wait``, which steps."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Steps, and restarts where an episode ended."""
        step = self._advance(self._actions)
        self.step_info = step.info
        self._returns += self._score(step)
        self._steps += 1
        done = step.terminated | step.truncated
        infos = unmade_infos(self._unmade, step.info, self._info_of)
        if np.count_nonzero(done):
            self._finish(np.flatnonzero(done), step, infos)
        return step.observation, step.reward.astype(np.float32), done, infos

    def _score(self, step: Step) -> Array:
        """The rewards [N] that enter the episode statistics."""
        return step.reward

    def _info_of(self, info: Info, row: int) -> dict[str, Any]:
        """A new info dict of one row."""
        return info_row(info, row)

    def _finish(self, ended: Array, step: Step, infos: Infos) -> None:
        last_observations, last_info = self._restart(ended, step)
        for row, last in zip(ended.tolist(), last_observations, strict=True):
            infos[row] = {
                "episode": self._statistics(row),  # an environment with statistics of its own overrides it
                **self._info_of(last_info, row),
                "terminal_observation": last,
                "TimeLimit.truncated": bool(step.truncated[row] and not step.terminated[row]),
            }
            if self._monitor is not None and "episode" in infos[row]:
                episode = infos[row]["episode"]
                self._monitor.write_row({key: episode[key] for key in ("r", "l", "t")})
        self._returns[ended] = 0
        self._first_steps[ended] = self._steps

    def _statistics(self, row: int) -> dict[str, Any]:
        """The statistics that ``Monitor`` writes: sum of rewards, steps, seconds since the start."""
        elapsed = round(time.time() - self._started, 6)
        return {"r": round(float(self._returns[row]), 6), "l": int(self._steps - self._first_steps[row]), "t": elapsed}

    def close(self) -> None:
        """Closes the monitor file."""
        if self._monitor is not None:
            self._monitor.close()

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """True for ``Monitor``, whose statistics this class keeps, and False for any other wrapper."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]


def require_supported(space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Refuses observation spaces that no policy of SB3 takes, and discrete spaces that do not start at 0."""
    subspaces = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    supported = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not all(isinstance(subspace, supported) for subspace in subspaces):
        raise ValueError(
            f"observation_space={space}: Box, Discrete, MultiDiscrete, MultiBinary or a flat Dict of these is needed; "
            "flatten the observation or leave the rest out with a wrapper"
        )
    require_start_at_zero(space, action_space)


def copied(observation: Any, space: spaces.Space[Any]) -> Observation:
    """A copy in the dtype of the space: an environment may reuse its buffer while SB3 holds the last observation."""
    if isinstance(space, spaces.Dict):
        return {key: np.array(observation[key], subspace.dtype) for key, subspace in space.spaces.items()}
    return np.array(observation, space.dtype)


def rows(observation: Observation, indices: Iterable[int]) -> list[Observation]:
    """Copies of single rows."""
    if isinstance(observation, dict):
        return [{key: np.array(value[row]) for key, value in observation.items()} for row in indices]
    return [np.array(observation[row]) for row in indices]


def put(observation: Observation, indices: Array, new: Observation) -> None:
    """Writes the rows of ``new`` over the rows ``indices``."""
    if isinstance(observation, dict):
        assert isinstance(new, dict)
        for key, value in observation.items():
            value[indices] = new[key]
    else:
        observation[indices] = new


def take(observation: Observation, indices: Array) -> Observation:
    """Several rows."""
    if isinstance(observation, dict):
        return {key: value[indices] for key, value in observation.items()}
    return observation[indices]


def same(left: Observation, right: Observation) -> bool:
    """Two observations are equal to the last bit."""
    if isinstance(left, dict):
        return isinstance(right, dict) and all(same(left[key], right[key]) for key in left)
    assert not isinstance(right, dict)
    return left.tobytes() == right.tobytes()
