"""``vec_env`` in a settings file or on the command line: what steps the environments of a training.

One of four names, or one of them with arguments: ``vec_env: envpool``, ``vec_env: {envpool: {threads: 2}}``,
``vec_env: {gymnasium: {vectorization_mode: async}}``. rl_zoo3's own parser knows the first two names only.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

NAMES = ("dummy", "subproc", "gymnasium", "envpool")

MakeVecEnv = Callable[..., VecEnv]  # as rl_zoo3 calls it: (one function per environment, **vec_env_kwargs)


class Environments(NamedTuple):
    """What a VecEnv of an experiment has to be told."""

    env_id: str
    env_kwargs: dict[str, Any]
    wrapper: Callable[..., Any] | None
    seed: int
    log_folder: str | None


class VectorEnvironment(NamedTuple):
    """The setting, read: a name and the arguments that come with it."""

    name: str
    arguments: dict[str, Any]

    def require_nothing_of_monitor(self, monitor_kwargs: object) -> None:
        """Refuses settings of a ``Monitor`` that would not be there."""
        if monitor_kwargs and self.name in ("gymnasium", "envpool"):
            raise ValueError(
                f"monitor_kwargs={monitor_kwargs!r}: vec_env={self.name!r} keeps the statistics without Monitor; "
                "use vec_env: dummy or subproc, or leave monitor_kwargs out"
            )

    def maker(self, environments: Environments) -> MakeVecEnv:
        """What rl_zoo3 is to call in place of ``DummyVecEnv``."""
        own = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}.get(self.name)
        if own is not None:
            return lambda env_fns, **options: own(env_fns, **{**options, **self.arguments})
        make = _envpool if self.name == "envpool" else _gymnasium
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


def vec_env_as_setting(command: str, given: Sequence[str]) -> list[str]:
    """``--vec-env NAME`` as ``-params vec_env:NAME``, so that it is checked here and written to ``config.yml``."""
    parser = argparse.ArgumentParser(prog=f"ppox {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--vec-env", choices=NAMES)
    chosen, rest = parser.parse_known_args(given)
    if chosen.vec_env is None:
        return list(given)
    setting = f"vec_env:{chosen.vec_env!r}"
    places = [place for place, argument in enumerate(rest) if argument in ("-params", "--hyperparams")]
    if not places:
        return [*rest, "-params", setting]
    # rl_zoo3 keeps the last -params only, and there the last value of a name.
    before = places[-1] + 1
    after = next((place for place in range(before, len(rest)) if rest[place].startswith("-")), len(rest))
    return [*rest[:after], setting, *rest[after:]]


def _envpool(environments: Environments, n_envs: int, arguments: dict[str, Any]) -> VecEnv:
    from sb3_ppo_ext.vec_env import EnvPoolVecEnv

    if environments.wrapper is not None:
        raise ValueError(
            "vec_env='envpool': env_wrapper cannot reach into EnvPool's C++; use vec_env: gymnasium, dummy or subproc, "
            "a vec_env_wrapper, or the arguments of the EnvPool task (env_kwargs)"
        )
    options = {"task": environments.env_id, **environments.env_kwargs, **arguments}
    return EnvPoolVecEnv(
        n_envs=n_envs, seed=environments.seed, monitor_file=_monitor_file(environments.log_folder), **options
    )


def _gymnasium(environments: Environments, n_envs: int, arguments: dict[str, Any]) -> VecEnv:
    from sb3_ppo_ext.vec_env import GymnasiumVecEnv

    if environments.wrapper is not None:
        # Monitor below it, as in rl_zoo3: the score is the task's own, whatever the wrapper does to the reward.
        arguments = {"vectorization_mode": "sync", "wrappers": (Monitor, environments.wrapper), **arguments}
    return GymnasiumVecEnv(
        environments.env_id,
        n_envs,
        environments.seed,
        monitor_file=_monitor_file(environments.log_folder),
        **{**environments.env_kwargs, **arguments},
    )


def _monitor_file(folder: str | None) -> str | None:
    return None if folder is None else os.path.join(folder, "0")
