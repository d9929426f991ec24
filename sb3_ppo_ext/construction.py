"""What PPOX makes around its networks when it is constructed or loaded, and when ``learn()`` begins."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_ppo_ext import arguments, streams
from sb3_ppo_ext.checkpoints.environments import fresh_seed
from sb3_ppo_ext.checkpoints.learning import RunCheckpoints
from sb3_ppo_ext.distributed.first_only import without_writers
from sb3_ppo_ext.distributed.group import join_processes
from sb3_ppo_ext.distributed.shards import Shards, dealt
from sb3_ppo_ext.engines.cuda.engine import exchange_buffer
from sb3_ppo_ext.engines.family import family_of
from sb3_ppo_ext.engines.selection import EngineChoice
from sb3_ppo_ext.joint_start import agree_on_normalization, log_on_first_alone, normalized_for_all
from sb3_ppo_ext.knobs.knob_set import knobs_of, parse_knobs
from sb3_ppo_ext.monitoring.run_monitor import RunMonitor
from sb3_ppo_ext.policies.popart import install_popart
from sb3_ppo_ext.rollout.by_hand import prepare_logs
from sb3_ppo_ext.update.optimizers import GroupRates
from sb3_ppo_ext.vec_env.accepted import warn_of_start

# Attributes made here that are not saved.
OF_THIS_PROCESS = (
    *("_family", "_monitor", "_engines", "_checkpoints", "_seconds", "last_update"),
    *("_processes", "_shards", "_acting_streams", "_alike", "_normalization"),
)


def set_up(model: Any, inherited: Callable[[], None]) -> None:
    """Checks the arguments, has networks and buffer made by ``inherited``, and makes what works with them.

    ``load()`` comes here after it has put back the saved attributes and its own keyword arguments.
    """
    parse_knobs(model)
    arguments.check_arguments(model)
    model._family = family_of(model.policy_class)
    model._family.check(model)
    arguments.check_compilable(model, model._family.compilable)
    model.rollout_buffer_class = model.rollout_buffer_class or model._family.buffer_class
    divide(model)
    with streams.seeding(model):
        inherited()
    carried = vars(model).get("_carried")  # none in older files
    model._family.take_carried(model.rollout_buffer, model.policy, carried)
    model._carried = None
    prepare_logs(model)
    model._rates = GroupRates(model.policy.optimizer, model.lr_schedule(1.0))  # as the policy has read it
    model.knobs = knobs_of(model)
    model.knobs.load_state_dict(model._controllers)
    model._controllers = {}
    arguments.check_exact_kl(model)
    arguments.check_buffer(model)
    arguments.check_divisible(model)
    model._monitor = RunMonitor()
    model._engines = EngineChoice(model._family)
    model._checkpoints = RunCheckpoints()
    model._seconds = {}
    model.last_update = None
    if model.normalize_value:
        install_popart(model.policy)


@contextmanager
def first_process_speaks(arguments: dict[str, Any]) -> Iterator[None]:
    """Around the constructor of PPO: rank 0 alone prints, and what is said of minibatches holds for all processes."""
    processes = join_processes()
    if processes.rank > 0 and "verbose" in arguments:
        arguments["verbose"] = 0
    with warnings.catch_warnings():
        if processes.count > 1:  # a process has a part of the rows
            warnings.filterwarnings("ignore", "You have specified a mini-batch size")
        yield


def divide(model: Any) -> None:
    """Determines which environments and rows of the run are those of this process."""
    model._processes = join_processes()
    model._acting_streams = model._normalization = None
    model._alike = False  # whether the processes have been compared
    if model.shards is None and model._processes.count > 1:
        model.shards = model._processes.count
    arguments.check_shard_count(model)
    own = None if model.shards is None else dealt(model.shards, model._processes.count, model._processes.rank)
    if model.seed is not None or model._shard_seed is None:
        model._shard_seed = np.random.SeedSequence(model.seed).entropy if model.seed is None else model.seed
    model._shards = None if own is None else Shards(model.shards, own, model._shard_seed)
    if model._shards is not None:
        if model.env is None:  # a saved model has the number of all processes
            model.n_envs = model._shards.of_own(model.n_envs)
        arguments.check_shards(model, model._shards)


def seed_by_shard(model: Any, seed: int | None) -> None:
    """Seeds the environment of index i in the run by ``seed + i``, as Stable-Baselines3 does in one process."""
    if seed is not None and model.env is not None and model._shards is not None:
        model.env.seed(seed + model._shards.first_of(model.n_envs))


def continue_streams(model: Any, around: dict[str, Any] | None) -> None:
    """After ``load()``: the streams go on where ``save()`` found them, or where the model that learns ``around`` is."""
    warn_of_start(model.action_space)
    if streams.after_loading(model, around) and model.env is not None:
        seed = fresh_seed(model.seed, model.num_timesteps)  # else its first episodes come once more
        model.env.seed(seed)
        seed_by_shard(model, seed)


def callbacks_of(
    model: Any, inherited: Callable[..., BaseCallback], callback: MaybeCallback, progress_bar: bool
) -> BaseCallback:
    """The callbacks of ``learn()`` as one; they are to find the engine's rollout buffer, which is chosen first."""
    choose_engine(model)
    first = model._processes.rank == 0
    all_callbacks = inherited(callback if first else without_writers(callback), progress_bar and first)
    model._checkpoints.check_callbacks(all_callbacks, first=first)
    return all_callbacks


def set_up_learning(
    model: Any, inherited: Callable[..., tuple[int, BaseCallback]], total_timesteps: int, *args: Any, **kwargs: Any
) -> tuple[int, BaseCallback]:
    """The last timestep and the callbacks of a ``learn()``, made by ``inherited``."""
    arguments.check_learn(model, total_timesteps)
    model._alike = False
    log_on_first_alone(model)
    before = model.num_timesteps
    reset_num_timesteps = kwargs.get("reset_num_timesteps", args[1] if len(args) > 1 else True)
    agree_on_normalization(model, resets=reset_num_timesteps or model._last_obs is None)
    model._family.place_environments(model)
    with normalized_for_all(model):
        last_timestep, callback = inherited(total_timesteps, *args, **kwargs)
    model._earlier_timesteps += before - model.num_timesteps  # 0 where the count goes on
    model._monitor.begin(callback)
    return last_timestep, callback


def choose_engine(model: Any) -> None:
    """Decides for ``learn()`` what is compiled, and gives a GPU's engine its rollout buffer."""
    run = model._run()
    model._engines.decide(run, model._total_timesteps)
    if not model._buffer_is_named:
        exchange_buffer(model.rollout_buffer, on_device=model._engines.keeps_rollouts_on_device(run))
