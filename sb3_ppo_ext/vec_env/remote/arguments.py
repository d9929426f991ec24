"""The arguments of ``RayVecEnv``, checked, and Ray itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor

from sb3_ppo_ext.optional_packages import require_packages
from sb3_ppo_ext.vec_env.remote.episodes import MakeEnv


@dataclass(frozen=True)
class WorkerSettings:
    """How workers are started, watched and replaced; times in seconds."""

    resources: dict[str, float]
    step_timeout: float | None
    start_timeout: float
    replay_timeout: float
    min_workers: int | None
    max_replacements: int
    replace_on: tuple[type[BaseException], ...]

    def __post_init__(self) -> None:
        for name in ("step_timeout", "start_timeout", "replay_timeout"):
            value = getattr(self, name)
            if value is None and name == "step_timeout":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r}: a number of seconds is needed, 0 or more")
        for name, count in (("max_replacements", self.max_replacements), ("min_workers", self.min_workers)):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
                raise ValueError(f"{name}={count!r}: a whole number is needed, 0 or more")
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in self.replace_on):
            raise ValueError(f"replace_on={self.replace_on!r}: classes of exceptions are needed")
        for name, amount in self.resources.items():
            if not isinstance(name, str) or isinstance(amount, bool) or not isinstance(amount, (int, float)):
                raise ValueError(f"resources={self.resources!r}: amounts by name are needed, as {{'CPU': 1}}")

    def amounts(self) -> dict[str, float]:
        """The resources of a worker by name."""
        return {"CPU": 1.0, **self.resources}

    def options(self) -> dict[str, Any]:
        """The arguments of Ray for an actor: it is not restarted by Ray, which would lose the episodes silently."""
        names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
        known = {names[name]: amount for name, amount in self.amounts().items() if name in names}
        other = {name: amount for name, amount in self.amounts().items() if name not in names}
        fixed: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        return {**known, "resources": other, **fixed}


def imported_ray() -> Any:
    """Ray, connected: to the cluster of ``RAY_ADDRESS`` or, without one, to a new one on this machine."""
    require_packages("RayVecEnv", '"sb3_ppo_ext[ray]"', "ray")
    import ray

    if not ray.is_initialized():
        ray.init()
    return ray


def functions_of(
    env_fns: Sequence[MakeEnv] | str, n_envs: int | None, env_kwargs: dict[str, Any] | None
) -> list[MakeEnv]:
    """A function per environment; of a task, functions that make it with a ``Monitor``."""
    if isinstance(env_fns, str):
        count = 1 if n_envs is None else n_envs
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"n_envs={n_envs!r}: a whole number is needed, at least 1")
        return [partial(_made, gym.spec(env_fns), dict(env_kwargs or {}))] * count
    named: Any = env_fns  # what is no list too
    functions: list[MakeEnv] = list(named) if isinstance(named, Sequence) else []
    if not functions or not all(callable(function) or isinstance(function, gym.Env) for function in functions):
        raise ValueError(
            f"env_fns={env_fns!r}: the id of a task, or a list of functions that make an environment each, is needed"
        )
    if any(isinstance(function, gym.Env) for function in functions):
        raise ValueError("env_fns: functions are needed, as [lambda: env, ...], and there are environments among them")
    if n_envs not in (None, len(functions)):
        raise ValueError(f"n_envs={n_envs}: there are {len(functions)} functions in env_fns; leave n_envs out")
    if env_kwargs:
        raise ValueError(f"env_kwargs={env_kwargs!r}: for a task's id alone; the functions in env_fns have their own")
    return functions


def _made(spec: Any, env_kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    return Monitor(spec.make(**env_kwargs))


def dealt(n_envs: int, envs_per_worker: int | None, free: float) -> list[list[int]]:
    """The rows of each worker: of ``envs_per_worker`` each, or as many workers as there are ``free`` places."""
    if envs_per_worker is None:
        workers = max(1, min(n_envs, int(free)))
    elif isinstance(envs_per_worker, bool) or not isinstance(envs_per_worker, int) or envs_per_worker < 1:
        raise ValueError(f"envs_per_worker={envs_per_worker!r}: a whole number is needed, at least 1")
    else:
        workers = math.ceil(n_envs / envs_per_worker)
    bounds = [n_envs * number // workers for number in range(workers + 1)]
    return [list(range(first, last)) for first, last in itertools.pairwise(bounds)]


def free_places(available: dict[str, float], amounts: dict[str, float]) -> float:
    """How many workers fit into the free resources of the cluster."""
    shares = [available.get(name, 0.0) / amount for name, amount in amounts.items() if amount > 0]
    return min(shares, default=available.get("CPU", 1.0))
