"""Gymnasium's vector wrappers where single environments restart: the mask reaches each, and their state is watched.

A wrapper that clears what it remembers of every row, or that takes the step after an episode's end for a row without a
transition (as it is in NEXT_STEP, but not here), would go on with wrong numbers. Neither can be seen from its class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, VectorWrapper
from gymnasium.wrappers.vector import DictInfoToList, NormalizeReward

from sb3_ppo_ext.vec_env.autoreset import AnyVectorEnv, restart_cart_poles
from sb3_ppo_ext.vec_env.episodes import Array, copied

State = dict[str, Any]  # name of an attribute -> a number, or an array with one entry per environment

REMEDY = (
    "make the environments with autoreset_mode=AutoresetMode.SAME_STEP "
    '(gym.make_vec(..., vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}) in mode "sync" or "async"), or let '
    'reset() of the wrapper restart the rows of options["reset_mask"] alone; VecNormalize of Stable-Baselines3 is the '
    "counterpart of normalising wrappers"
)


def wrappers_of(env: AnyVectorEnv) -> list[Any]:
    """The vector wrappers around the environments, outermost first."""
    found: list[Any] = []
    while isinstance(env, VectorWrapper):
        found.append(env)
        env = env.env
    return found


def without_lists(env: AnyVectorEnv) -> AnyVectorEnv:
    """``env`` without an outer ``DictInfoToList``: a VecEnv makes such lists itself."""
    while isinstance(env, DictInfoToList):
        env = env.env
    return env


class WrapperWatch:
    """Restarts single environments below vector wrappers, and refuses what a wrapper makes of it if that is wrong."""

    def __init__(self, env: AnyVectorEnv, mode: AutoresetMode) -> None:
        self.env = env
        self.wrappers = wrappers_of(env)
        self._begun: list[State] = [{} for _ in self.wrappers]
        if mode is not AutoresetMode.SAME_STEP and env.num_envs > 1:
            for wrapper in self.wrappers:
                if isinstance(wrapper, NormalizeReward):
                    raise ValueError(f"env={env}: NormalizeReward.reset() forgets the returns of every row; {REMEDY}")

    def begin(self) -> None:
        """Stores the states of the wrappers when every episode has just begun."""
        self._begun = self._states()

    def restart(self, ended: Array) -> tuple[Any, dict[str, Any]]:
        """The result of a ``reset`` of the rows ``ended`` [N]; all rows get a full reset, which needs no mask."""
        before = self._states()
        if ended.all():
            result = self.env.reset()
        else:
            with options_for_each(self.wrappers):
                result = self.env.reset(options={"reset_mask": ended.copy()})
        for wrapper, old, new, begun in zip(self.wrappers, before, self._states(), self._begun, strict=True):
            name = lost_in_others(old, new, begun, ended) or end_in_next_step(new, begun, ended)
            if name is not None:
                raise ValueError(
                    f"{type(wrapper).__name__}.{name} is wrong for some environments after others were restarted: "
                    f"{name} of those that go on has changed, or still marks the episodes that have ended; {REMEDY}"
                )
        return result

    def _states(self) -> list[State]:
        return [state_of(vars(wrapper), self.env.num_envs) for wrapper in self.wrappers]


@contextmanager
def options_for_each(wrappers: list[Any]) -> Iterator[None]:
    """Hands every environment below a wrapper options of its own meanwhile.

    Gymnasium's environments take the mask out of the options they are given, which every wrapper above them would
    take for a reset of all.
    """
    below = [wrapper.env for wrapper in wrappers]
    replaced = [vars(env).get("reset") for env in below]
    for env in below:
        env.reset = _restart_of(env)
    try:
        yield
    finally:
        for env, method in zip(below, replaced, strict=True):
            if method is None:
                del env.reset
            else:
                env.reset = method


def _restart_of(env: Any) -> Callable[..., tuple[Any, dict[str, Any]]]:
    method, is_cart_pole = env.reset, type(env) is CartPoleVectorEnv

    def reset(*args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if is_cart_pole and options is not None and "reset_mask" in options:
            restart_cart_poles(env, np.flatnonzero(options["reset_mask"]))
            return np.asarray(env.state.T, np.float32), {}
        return method(*args, options=None if options is None else dict(options), **kwargs)  # type: ignore[no-any-return]

    return reset


def state_of(attributes: dict[str, Any], count: int, prefix: str = "") -> State:
    """Copies of the numbers and of what has one entry per environment; of a list in it, its length."""
    found: State = {}
    for name, value in attributes.items():
        if isinstance(value, dict):
            found.update(state_of(value, count, f"{prefix}{name}."))
        elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, torch.Tensor) and value.shape[:1] == (count,):
            found[f"{prefix}{name}"] = value.detach().cpu().numpy().copy()
        elif isinstance(value, np.ndarray) and value.shape[:1] == (count,):
            found[f"{prefix}{name}"] = value.copy()
        elif isinstance(value, list) and len(value) == count and all(map(_is_measurable, value)):
            found[f"{prefix}{name}"] = np.array([len(entry) if isinstance(entry, Sized) else entry for entry in value])
    return found


def _is_measurable(entry: Any) -> bool:
    return isinstance(entry, (int, float, np.number, np.bool_, Sized))


def lost_in_others(before: State, after: State, begun: State, ended: Array) -> str | None:
    """The attribute that has changed for environments that go on: their entries, or a number set back to its start."""
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
            if old.shape == new.shape and old[~ended].tobytes() != new[~ended].tobytes():
                return name
        elif not ended.all() and bool(np.any(old != new)) and bool(np.all(new == begun.get(name))):
            return name
    return None


def end_in_next_step(after: State, begun: State, ended: Array) -> str | None:
    """The flags that mark just the environments that have ended, or just the others, although they have begun anew."""
    for name, flags in after.items():
        if isinstance(flags, np.ndarray) and flags.dtype == np.bool_ and flags.shape == ended.shape:
            marks = np.array_equal(flags, ended) or np.array_equal(flags, ~ended)
            if marks and not (name in begun and np.array_equal(flags, begun[name])):
                return name
    return None


class SameStepEnds:
    """Wrappers in SAME_STEP mode, in a step in which an episode ended and the next one began.

    The columns of the environment are of the next episode then, those that a wrapper adds are of the last step.
    """

    def __init__(self, env: AnyVectorEnv) -> None:
        self.env = env
        base: Any = env.unwrapped
        self._step, self._space = base.step, base.single_observation_space
        self._names: frozenset[str] = frozenset()
        self._before: tuple[Any, dict[int, tuple[Any, Any]]] | None = None
        self._checked = False
        base.step = self._noted_step

    def _noted_step(self, actions: Any) -> Any:
        result = self._step(actions)
        info = result[4]
        if "final_obs" in info:
            self._names = frozenset(info)
            if not self._checked and "_final_obs" in info and isinstance(info["final_obs"], np.ndarray):
                space, rows = self._space, np.flatnonzero(info["_final_obs"]).tolist()
                last = {row: (info["final_obs"][row], copied(info["final_obs"][row], space)) for row in rows}
                self._before = copied(result[0], space), last
        return result

    def split(self, info: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Columns of the environment, and columns of wrappers."""
        columns: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for name, column in info.items():
            columns[name not in self._names][name] = column
        return columns

    def check(self, observation: Any, final_obs: Any) -> None:
        """Refuses wrappers that change observations but not the last ones, which is seen when an episode has ended."""
        if self._checked or self._before is None:
            return
        self._checked, (before, last) = True, self._before
        changed = not _equal(observation, before)
        if changed and any(final_obs[row] is handed and _equal(handed, copy) for row, (handed, copy) in last.items()):
            raise ValueError(
                f"env={self.env}: its wrappers change observations, but not info['final_obs'], the last one of an "
                "episode; make the environments with autoreset_mode=AutoresetMode.DISABLED, or wrap each of them"
            )


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    return np.shape(left) == np.shape(right) and np.array_equal(left, right)
