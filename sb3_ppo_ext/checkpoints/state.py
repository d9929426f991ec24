"""The state of a run besides the model's own file: all else that the rest of the run depends on."""

from __future__ import annotations

import pickle
import platform
import time
from typing import Any, NamedTuple

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_ppo_ext.checkpoints.callbacks import advance_progress_bars, restore_callbacks, save_callbacks
from sb3_ppo_ext.checkpoints.environments import save_environments
from sb3_ppo_ext.checkpoints.logs import restore_pending, save_logger
from sb3_ppo_ext.checkpoints.monitor_files import save_monitor_files
from sb3_ppo_ext.checkpoints.partial_rollout import restore_partial_rollout, save_partial_rollout
from sb3_ppo_ext.checkpoints.settings import Checkpoints
from sb3_ppo_ext.rollout.token_buffer import has_begun
from sb3_ppo_ext.saving import random_state, restore_random_state

State = dict[str, Any]


# What each of several processes has of its own, in a file named by its first shard.
OF_PROCESS = ("streams", "monitor_files", "environments", "last")
LAST = ("_last_obs", "_last_episode_starts", "_last_original_obs")


def name_of_shard(shard: int) -> str:
    """The file of the process whose first shard it is."""
    return f"shard_{shard:04d}.pt"


def shards_of(model: Any) -> int:
    """The shards of this process; 0 of a run without shards."""
    return 0 if model._shards is None else len(model._shards.own)


class LearnCall(NamedTuple):
    """The arguments of ``learn()``."""

    total_timesteps: Any  # a number; None in a resumed run, which has one
    callback: MaybeCallback
    log_interval: Any  # None switches logging off, which is not in the annotation of PPO.learn
    tb_log_name: str
    reset_num_timesteps: bool
    progress_bar: bool


def save_state(
    model: Any, callback: BaseCallback, settings: Checkpoints, *, call: LearnCall, iteration: int, exact: bool
) -> State:
    """The state between two updates, or in the middle of a rollout; ``exact``: not in the middle of a step."""
    run = settings.run
    in_rollout = exact and not model.rollout_buffer.full and has_begun(model.rollout_buffer)
    return {
        "loop": {
            "asked_for": call.total_timesteps,
            "log_interval": call.log_interval,
            "tb_log_name": call.tb_log_name,
            "last_timestep": model._total_timesteps,
            "first_timestep": model._num_timesteps_at_start,
            "iteration": iteration,
            "elapsed": (time.time_ns() - model.start_time) / 1e9,
        },
        "machine": machine(),
        "settings": settings,
        "compiles": model._engines.compiles,
        "streams": random_state(model.seed),
        "callbacks": save_callbacks(callback),
        "logger": save_logger(model.logger, run),
        "monitor_files": save_monitor_files(model.env, run),
        "environments": save_environments(model.env, shards_of(model)) if exact else None,
        # As in the model's file, which has them for rank 0: another protocol may change the layout of an image.
        "last": pickle.dumps({name: getattr(model, name) for name in LAST}, protocol=5),
        "watch": _watch(model),
        "discounts": (model.rollout_buffer.gamma, model.rollout_buffer.gae_lambda),
        "partial": save_partial_rollout(model) if in_rollout else None,
    }


def machine() -> dict[str, Any]:
    """The properties of a machine that the last bits of results depend on."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def _watch(model: Any) -> State:
    monitor = model._monitor
    said = monitor.diagnostics
    return {
        "rollouts": monitor.rollouts,
        "described": monitor.described,
        "said": list(said.warned),
        "negative_rollouts": said.negative_rollouts,
    }


def restore_watch(model: Any, state: State) -> None:
    """The number of rollouts that were trained on, and what the user has been warned of."""
    monitor = model._monitor
    monitor.rollouts = state["rollouts"]
    monitor.diagnostics.warned = list(state["said"])
    monitor.diagnostics.negative_rollouts = state["negative_rollouts"]


def restore_state(model: Any, callback: BaseCallback, state: State) -> tuple[int | None, list[str]]:
    """The last thing before a resumed run acts: what ``learn()`` has set up is as it was, and so are the streams.

    Returns the steps of a rollout that has begun (None where none has), and lines on what is not exact.
    """
    loop = state["loop"]
    # The buffer has those of its construction, and the model may have others since.
    model.rollout_buffer.gamma, model.rollout_buffer.gae_lambda = state["discounts"]
    model.start_time = time.time_ns() - int(loop["elapsed"] * 1e9)
    model._num_timesteps_at_start = loop["first_timestep"]
    model._monitor.described = state["watch"]["described"]
    lines = restore_callbacks(callback, state["callbacks"], first=model._processes.rank == 0)
    first = loop["first_timestep"]
    advance_progress_bars(callback, total=model._total_timesteps - first, done=model.num_timesteps - first)
    restore_pending(model.logger, state["logger"])
    started = None if state["partial"] is None else restore_partial_rollout(model, state["partial"])
    here = machine()
    lines += [
        f"{name} is {here[name]} here and was {before}: results are equal up to rounding"
        for name, before in state["machine"].items()
        if here[name] != before
    ]
    restore_random_state(state["streams"])
    return started, lines
