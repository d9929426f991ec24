"""EnvPool: environments stepped by a C++ thread pool, as an SB3 VecEnv."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_ppo_ext.optional_packages import optional_package
from sb3_ppo_ext.process_wide import ignoring_warnings
from sb3_ppo_ext.vec_env.episodes import Array, EpisodeVecEnv, Observation, Step, put, require_supported, rows
from sb3_ppo_ext.vec_env.infos import Info, info_row

NUMBERING = ("env_id", "players")  # columns in which EnvPool numbers the rows

# EnvPool has the bounds of float32 spaces in float64, and Gymnasium warns of it when they are first read.
ROUNDED_BOUNDS = ignoring_warnings(".*precision lowered by casting to float32")

# Tasks whose limit only ends the episode. In others it may enter the reward (MiniGrid) or the observation.
PLAIN_LIMIT = ("envpool.classic_control", "envpool.mujoco.gym", "envpool.box2d")


class EnvPoolVecEnv(EpisodeVecEnv):
    """``n_envs`` environments of one EnvPool task, such as ``HalfCheetah-v5`` or ``Pong-v5``.

    ``threads`` is the number of EnvPool's threads, by default one per environment up to the number of cores. Further
    arguments are EnvPool's own for the task (``max_episode_steps``, ``frame_skip``, ``render_mode``, ...).
    ``thread_affinity_offset=0`` gives every thread a core of its own: steps take a fifth to a third less time where
    nothing else runs on these cores, and more where something does.

    EnvPool calls every episode that ends in its last possible step truncated, also where the task ended there. For
    classic control, Box2D and Gymnasium's MuJoCo tasks that is set right; other tasks have EnvPool's flags.
    With ``episodic_life`` the statistics of an Atari game are those of single lives.
    """

    def __init__(
        self,
        task: str,
        n_envs: int,
        seed: int | None = None,
        threads: int | None = None,
        *,
        monitor_file: str | None = None,
        **config: Any,
    ) -> None:
        self.task = task
        self._config = _checked(task, n_envs, threads, config)
        self._limit, unlimited = _task_limit(task, self._config)
        self._limits_here = unlimited is not None
        self._is_game = _family(task) == "envpool.atari"
        self._config = unlimited or self._config
        self._seed = _int32(n_envs, seed)
        self.pool = self._make_pool()
        self._fresh = True
        observation_space = _unbounded(self.pool.single_observation_space)
        action_space = _as_gymnasium(self.pool.single_action_space)
        require_supported(observation_space, action_space)
        super().__init__(n_envs, observation_space, action_space, monitor_file=monitor_file, name=task)

    def _make_pool(self) -> Any:
        import envpool

        pool: Any = envpool.make(self.task, env_type="gymnasium", seed=self._seed, **self._config)
        with ROUNDED_BOUNDS:
            _ = pool.observation_space, pool.action_space
        return pool

    def _begin(self) -> tuple[Observation, Info]:
        if any(self._options):
            raise ValueError(f"options={self._options}: EnvPool takes none at reset; pass them to EnvPoolVecEnv(...)")
        if self._seeds[0] is not None:
            self._reseed(_int32(self.num_envs, self._seeds[0]))
        self._fresh = False
        observation, info = self.pool.reset()
        return self._cast(observation), info

    def _reseed(self, seed: int) -> None:
        """A new pool, unless this one is unused: EnvPool seeds at construction only."""
        if seed != self._seed or not self._fresh:
            self._seed = seed
            self.pool.close()
            self.pool = self._make_pool()

    def _advance(self, actions: Array) -> Step:
        observation, reward, terminated, truncated, info = self.pool.step(actions)
        if self._limits_here:
            truncated = truncated | (info["elapsed_step"] >= self._limit)
        return Step(self._cast(observation), reward, terminated, truncated, info)

    def _score(self, step: Step) -> Array:
        """Points in Atari's games, whose rewards may be clipped."""
        points: Array = step.info["reward"] if self._is_game else step.reward
        return points

    def _restart(self, ended: Array, step: Step) -> tuple[list[Observation], Info]:
        # EnvPool would restart these in the next step and ignore the action: a row that is no transition.
        last = rows(step.observation, ended)
        observation, info = self.pool.reset(ended.astype(np.int32))
        order = info["env_id"]
        put(step.observation, order, self._cast(observation))
        for position, row in enumerate(order.tolist()):
            self.reset_infos[row] = self._info_of(info, position)
        return last, step.info

    def _info_of(self, info: Info, row: int) -> dict[str, Any]:
        return info_row({key: column for key, column in info.items() if key not in NUMBERING}, row)

    def _cast(self, observation: Any) -> Observation:
        """The observation in the dtype of the space, not copied: EnvPool writes to no array that it has returned."""
        if isinstance(self.observation_space, spaces.Dict):
            subspaces = self.observation_space.spaces
            return {key: np.asarray(observation[key], space.dtype) for key, space in subspaces.items()}
        return np.asarray(observation, self.observation_space.dtype)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the pool, or an argument it was made with, once per environment."""
        config = {**self.pool.config, "max_episode_steps": self._limit}
        value = config[attr_name] if attr_name in config else getattr(self.pool, attr_name)
        return [value for _ in self._indices(indices)]

    def _indices(self, indices: VecEnvIndices) -> list[int]:
        count = self._config["num_envs"]  # VecEnv reads the render mode before it sets num_envs
        return list(range(count)) if indices is None else list(self._get_indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused: the environments are C++ objects."""
        raise ValueError(f"set_attr({attr_name!r}): EnvPool's environments cannot be changed; {_TO_MAKE}")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refused: the environments are C++ objects."""
        raise AttributeError(f"env_method({method_name!r}): EnvPool's environments have no methods; {_TO_MAKE}")

    def get_images(self) -> Sequence[Array | None]:
        """One picture per environment, for the tasks EnvPool can draw."""
        return list(self.pool.render(env_ids=np.arange(self.num_envs, dtype=np.int32)))

    def render(self, mode: str | None = None) -> Array | None:
        """A picture of all environments; ``render_mode="human"`` shows the first one in a window."""
        if self.render_mode == "human":
            self.pool.render()
            return None
        return super().render(mode)

    def close(self) -> None:
        """Closes the pool and the monitor file."""
        super().close()
        self.pool.close()


_TO_MAKE = "its settings are arguments of EnvPoolVecEnv(...)"


def _checked(task: str, n_envs: int, threads: int | None, config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``envpool.make``; a negative number of threads would end the process without a message."""
    envpool = optional_package("envpool", "EnvPoolVecEnv, on Python 3.11 or newer,", '"sb3_ppo_ext[envpool]"')
    for name, value, least in (("n_envs", n_envs, 1), ("threads", 1 if threads is None else threads, 1)):
        if value < least:
            raise ValueError(f"{name}={value}: at least {least} is needed")
    known = envpool.list_all_envs()
    if task not in known:
        alike = ", ".join(difflib.get_close_matches(task, known, cutoff=0.5)) or "see envpool.list_all_envs()"
        raise ValueError(f"task={task!r}: EnvPool has no such task; {alike}")
    for name in {"batch_size", "num_envs", "num_threads"} & config.keys():
        raise ValueError(f"{name}={config[name]!r}: EnvPoolVecEnv steps all n_envs at once, with threads=...")
    made = {"num_envs": n_envs, "num_threads": threads or 0, **config}
    try:
        spec = envpool.make_spec(task, **made)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{config}: EnvPool's {task} does not take this ({str(error).splitlines()[0]})") from error
    if spec.config.max_num_players > 1:
        raise ValueError(f"task={task!r}: it is for {spec.config.max_num_players} players, SB3 is for one")
    return made


def _task_limit(task: str, config: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """The time limit, and arguments that put EnvPool's own out of reach, or None if that could change the task.

    With a limit one step later, an end that EnvPool reports in the last step is the task's own.
    """
    import envpool

    limit = envpool.make_spec(task, **config).config.max_episode_steps
    if _family(task) not in PLAIN_LIMIT or not 0 < limit < np.iinfo(np.int32).max:
        return limit, None
    return limit, {**config, "max_episode_steps": limit + 1}


def _family(task: str) -> str:
    """EnvPool's package for this task."""
    from envpool.registration import registry

    return str(registry.specs[task][0])


def _int32(n_envs: int, seed: int | None) -> int:
    """A seed from which counting up to ``n_envs`` stays in EnvPool's range; EnvPool's own default is always 42."""
    if seed is None:
        seed = int(np.random.randint(0, np.iinfo(np.uint32).max, dtype=np.uint32))
    return seed % (2**31 - n_envs)


def _unbounded(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """A space without bounds where EnvPool's Box2D has the least positive number (C++'s ``numeric_limits::min``)."""
    if isinstance(space, spaces.Box) and space.dtype == np.float32 and (space.low == np.finfo(np.float32).tiny).all():
        return spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    return space


def _as_gymnasium(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The action space as Gymnasium declares it: with EnvPool's float64, models could not change over."""
    if isinstance(space, spaces.Box) and space.dtype == np.float64:
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    return space
