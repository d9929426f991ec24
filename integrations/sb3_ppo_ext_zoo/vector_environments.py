"""``vec_env`` in a settings file or on the command line: the VecEnv of a training.

It is one of six names, alone or with arguments: ``vec_env: envpool``, ``vec_env: {envpool: {threads: 2}}``,
``vec_env: {gymnasium: {vectorization_mode: async}}``, ``vec_env: {ray: {envs_per_worker: 4}}``. rl_zoo3's parser has
the first two names only. "prompts" is the ``PromptVecEnv`` of an environment of prompts, which scores all responses
together and has groups: ``vec_env: {prompts: {group_size: 8}}``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

NAMES = ("dummy", "subproc", "gymnasium", "envpool", "ray", "prompts")

MakeVecEnv = Callable[..., VecEnv]  # as rl_zoo3 calls it: (one function per environment, **vec_env_kwargs)


class Environments(NamedTuple):
    """The environments of an experiment, for any VecEnv."""

    env_id: str
    env_kwargs: dict[str, Any]
    wrapper: Callable[..., Any] | None
    seed: int
    log_folder: str | None
    evaluation: bool
    first: int  # index in the run of the first one of this process


class VectorEnvironment(NamedTuple):
    """The parsed setting: a name and its arguments."""

    name: str
    arguments: dict[str, Any]

    def require_nothing_of_monitor(self, monitor_kwargs: object) -> None:
        """Refuses settings of a ``Monitor`` that would not be there."""
        if monitor_kwargs and self.name in ("gymnasium", "envpool", "prompts"):
            raise ValueError(
                f"monitor_kwargs={monitor_kwargs!r}: vec_env={self.name!r} keeps the statistics without Monitor; "
                "use vec_env: dummy or subproc, or leave monitor_kwargs out"
            )

    def maker(self, environments: Environments) -> MakeVecEnv:
        """The function that rl_zoo3 calls in the place of ``DummyVecEnv``."""
        if self.name == "ray":
            return lambda env_fns, **options: _ray(environments, env_fns, {**options, **self.arguments})
        of_sb3 = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}.get(self.name)
        if of_sb3 is not None:
            return lambda env_fns, **options: of_sb3(env_fns, **{**options, **self.arguments})
        make = {"envpool": _envpool, "gymnasium": _gymnasium, "prompts": _prompts}[self.name]
        return lambda env_fns, **options: make(environments, len(env_fns), {**options, **self.arguments})


def parse_vec_env(value: object) -> VectorEnvironment:
    """``"envpool"`` or ``{"envpool": {...}}``."""
    if isinstance(value, str) and value in NAMES:
        return VectorEnvironment(value, {})
    if isinstance(value, dict) and len(value) == 1:
        ((name, arguments),) = value.items()
        if name in NAMES and (arguments is None or isinstance(arguments, dict)):
            return VectorEnvironment(name, dict(arguments or {}))
    raise ValueError(f"vec_env={value!r}: one of {', '.join(NAMES)} is needed, or {{name: {{argument: value}}}}")


def vec_env_as_setting(command: str, arguments: Sequence[str]) -> list[str]:
    """``--vec-env NAME`` as ``-params vec_env:NAME``, so that it is checked here and written to ``config.yml``."""
    parser = argparse.ArgumentParser(prog=f"ppox {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--vec-env", choices=NAMES)
    chosen, rest = parser.parse_known_args(arguments)
    if chosen.vec_env is None:
        return list(arguments)
    setting = f"vec_env:{chosen.vec_env!r}"
    positions = [position for position, argument in enumerate(rest) if argument in ("-params", "--hyperparams")]
    if not positions:
        return [*rest, "-params", setting]
    # rl_zoo3 keeps the last -params only, and there the last value of a name.
    first = positions[-1] + 1
    end = next((position for position in range(first, len(rest)) if rest[position].startswith("-")), len(rest))
    return [*rest[:end], setting, *rest[end:]]


def _envpool(environments: Environments, n_envs: int, arguments: dict[str, Any]) -> VecEnv:
    from sb3_ppo_ext.vec_env import EnvPoolVecEnv

    if environments.wrapper is not None:
        raise ValueError(
            "vec_env='envpool': env_wrapper cannot reach into EnvPool's C++; use vec_env: gymnasium, dummy or subproc, "
            "a vec_env_wrapper, or the arguments of the EnvPool task (env_kwargs)"
        )
    options = {"task": environments.env_id, **environments.env_kwargs, **arguments}
    return EnvPoolVecEnv(
        n_envs=n_envs, seed=environments.seed + environments.first, monitor_file=_monitor_file(environments), **options
    )


def _gymnasium(environments: Environments, n_envs: int, arguments: dict[str, Any]) -> VecEnv:
    from sb3_ppo_ext.vec_env import GymnasiumVecEnv

    if environments.wrapper is not None:
        # Monitor below it, as in rl_zoo3: the score is the task's own, whatever the wrapper does to the reward.
        arguments = {"vectorization_mode": "sync", "wrappers": (Monitor, environments.wrapper), **arguments}
    return GymnasiumVecEnv(
        environments.env_id,
        n_envs,
        environments.seed + environments.first,
        monitor_file=_monitor_file(environments),
        **{**environments.env_kwargs, **arguments},
    )


def _ray(environments: Environments, env_fns: list[Any], arguments: dict[str, Any]) -> VecEnv:
    from sb3_ppo_ext.vec_env import RayVecEnv

    if environments.evaluation:
        # The workers of the training have all cores, and wait meanwhile.
        arguments = {**arguments, "resources": {**(arguments.get("resources") or {}), "CPU": 0}}
    return RayVecEnv(env_fns, **arguments)


def _prompts(environments: Environments, n_envs: int, arguments: dict[str, Any]) -> VecEnv:
    from sb3_ppo_ext.language import PromptEnv, PromptVecEnv

    if environments.wrapper is not None:
        raise ValueError("vec_env='prompts': env_wrapper has no single environment to wrap; use vec_env: dummy")
    single = gym.make(environments.env_id, **environments.env_kwargs).unwrapped
    if not isinstance(single, PromptEnv):
        raise ValueError(
            f"vec_env='prompts': {environments.env_id} is a {type(single).__name__}; a PromptEnv is needed, a step of "
            "which is a response"
        )
    if n_envs == 1:  # rl_zoo3 evaluates one response at a time
        arguments = {**arguments, "group_size": 1}
    env = PromptVecEnv.of_task(single.task, n_envs, **{"shuffle": single.order.shuffle, **arguments})
    env.seed(environments.seed + environments.first)
    return env


def _monitor_file(environments: Environments) -> str | None:
    folder = environments.log_folder
    return None if folder is None else os.path.join(folder, str(environments.first))
