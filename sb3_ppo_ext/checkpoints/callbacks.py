"""The state of callbacks: what they have counted and found, without what they were made with.

A callback with ``state_dict()`` and ``load_state_dict()`` saves what those give. Of any other it is the plain values
among its attributes, and the vector environments, as that of ``EvalCallback``; arguments of Stable-Baselines3's own
classes (paths, frequencies) are those of the resumed program.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    EvalCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_ext.checkpoints.environments import prepare_environments, restore_environments, save_environments
from sb3_ppo_ext.checkpoints.plain import is_plain
from sb3_ppo_ext.checkpoints.reading import CheckpointWarning
from sb3_ppo_ext.distributed.first_only import Skipped
from sb3_ppo_ext.monitoring.checkpoints import with_children
from sb3_ppo_ext.saving import save_atomically

State = dict[str, Any]

NOT_STATE = {"model", "locals", "globals", "parent", "logger", "verbose", "_total_max_episodes"}
OWN_PACKAGES = ("stable_baselines3", "sb3_contrib", "rl_zoo3", "sb3_ppo_ext", "sb3_ppo_ext_zoo")


def stateful(callback: BaseCallback) -> list[BaseCallback]:
    """The callback and all below it, depth first, without those that only hold or show something."""
    return [child for child in with_children(callback) if not _is_stateless(child)]


def _is_stateless(callback: BaseCallback) -> bool:
    no_callback = isinstance(callback, ConvertCallback) and callback.callback is None
    return no_callback or type(callback) in (CallbackList, ProgressBarCallback, Skipped)


def save_callbacks(callback: BaseCallback) -> list[tuple[str, State]]:
    """Name of the class and state of each."""
    return [(name_of(child), _state(child)) for child in stateful(callback)]


def name_of(value: object) -> str:
    """The name of its class; without the module, which is another where the same file is run as a program."""
    return type(value).__qualname__


def _state(callback: Any) -> State:
    attributes = dict(_attributes(callback))
    environments = {name: value for name, value in attributes.items() if isinstance(value, VecEnv)}
    state: State = {"environments": {name: save_environments(env) for name, env in environments.items()}}
    counted = {"n_calls": callback.n_calls, "num_timesteps": callback.num_timesteps}
    if _saves_itself(callback):
        return {**state, "plain": counted, "state_dict": callback.state_dict()}
    return {**state, "plain": counted | {name: value for name, value in attributes.items() if is_plain(value)}}


def _saves_itself(callback: Any) -> bool:
    return all(callable(getattr(callback, name, None)) for name in ("state_dict", "load_state_dict"))


def _attributes(callback: BaseCallback) -> Iterator[tuple[str, Any]]:
    settings = NOT_STATE | set(_arguments_of_known_classes(type(callback)))
    for name, value in vars(callback).items():
        if name not in settings or isinstance(value, VecEnv):
            yield name, value


def _arguments_of_known_classes(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        if base.__module__.split(".")[0] in OWN_PACKAGES and "__init__" in vars(base):
            yield from inspect.signature(vars(base)["__init__"]).parameters


def warn_of_left_out(callback: BaseCallback) -> None:
    """Names the attributes of users' callbacks that a resumed run will find as they are made."""
    for child in stateful(callback):
        for env in vars(child).values():
            if isinstance(env, VecEnv):
                prepare_environments(env)
        if type(child).__module__.split(".")[0] in OWN_PACKAGES or _saves_itself(child):
            continue
        left_out = [name for name, value in _attributes(child) if _may_be_state(value)]
        if left_out:
            warnings.warn(
                f"checkpoints do not hold {', '.join(left_out)} of the callback {name_of(child)}: a resumed run finds "
                "them as its constructor makes them; if they change, give the class state_dict() and load_state_dict()",
                CheckpointWarning,
                stacklevel=2,
            )


def _may_be_state(value: Any) -> bool:
    holds_none = (BaseCallback, VecEnv)
    return not (is_plain(value) or isinstance(value, holds_none) or callable(value) or inspect.ismodule(value))


def check_callbacks(callback: BaseCallback, saved: list[tuple[str, State]]) -> None:
    """``ValueError`` where the callbacks are not those of the run, in the same order."""
    here, before = [name_of(child) for child in stateful(callback)], [name for name, _ in saved]
    if here != before:
        raise ValueError(
            f"callback: the run was trained with {_listed(before)}, and is resumed with {_listed(here)}. Pass the same "
            "callbacks in the same order to resume(folder, env, callback=...); their arguments may differ"
        )


def _listed(names: list[str]) -> str:
    return f"[{', '.join(names)}]" if names else "no callback"


def of_other_ranks(callback: BaseCallback, saved: list[tuple[str, State]]) -> list[tuple[str, State]]:
    """The saved states of those callbacks that other ranks than 0 have: some of the run's, in the same order."""
    rest, found = iter(saved), []
    for child in stateful(callback):
        entry = next((entry for entry in rest if entry[0] == name_of(child)), None)
        if entry is None:
            check_callbacks(callback, saved)
        else:
            found.append(entry)
    return found


def restore_callbacks(callback: BaseCallback, saved: list[tuple[str, State]], *, first: bool = True) -> list[str]:
    """Puts the states back; lines on what could not be restored exactly. ``first``: in rank 0, which has them all."""
    lines = []
    saved = saved if first else of_other_ranks(callback, saved)
    for child, (name, state) in zip(stateful(callback), saved, strict=True):
        vars(child).update(state["plain"])
        if "state_dict" in state:
            load: Any = child
            load.load_state_dict(state["state_dict"])
        for attribute, of_env in state["environments"].items():
            env = vars(child).get(attribute)
            if isinstance(env, VecEnv):
                lines += [f"{name}.{attribute}: {line}" for line in restore_environments(env, of_env)]
        if isinstance(child, EvalCallback):
            _write_evaluations(child)
    return lines


def _write_evaluations(callback: EvalCallback) -> None:
    """The file as the callback has it: a killed run may have left a torn one, or results of what did not happen."""
    if callback.log_path is None or not callback.evaluations_timesteps:
        return
    arrays: dict[str, Any] = {
        "timesteps": callback.evaluations_timesteps,
        "results": callback.evaluations_results,
        "ep_lengths": callback.evaluations_length,
    }
    if callback.evaluations_successes:
        arrays["successes"] = callback.evaluations_successes
    os.makedirs(os.path.dirname(callback.log_path), exist_ok=True)
    save_atomically(f"{callback.log_path}.npz", lambda file: np.savez(file, **arrays))


def advance_progress_bars(callback: BaseCallback, *, total: int, done: int) -> None:
    """Progress bars show the whole run, not the rest of it."""
    for child in with_children(callback):
        if isinstance(child, ProgressBarCallback):
            bar: Any = child.pbar  # tqdm.rich, whose own reset() fails
            bar.total = total
            bar._prog.update(bar._task_id, total=total)
            bar.update(done)
