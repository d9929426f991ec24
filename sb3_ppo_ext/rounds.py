"""The two halves of a round of training: a rollout is collected, then policy and value function are updated from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_ext import arguments
from sb3_ppo_ext.distributed.processes import ProcessFailedError, StoppedElsewhere, together
from sb3_ppo_ext.engines.selection import training
from sb3_ppo_ext.host.sb3 import collects_as_sb3
from sb3_ppo_ext.joint_start import agree_on_normalization, compare_processes, copy_parameters, normalized_for_all
from sb3_ppo_ext.knobs.knob_set import knobs_of
from sb3_ppo_ext.monitoring.divergence import DivergedError
from sb3_ppo_ext.monitoring.update_log import record_update
from sb3_ppo_ext.rollout.by_hand import begin_collecting, require_rollout
from sb3_ppo_ext.rollout.collect import collect_rollouts
from sb3_ppo_ext.rollout.episodes_of_all import merge_episodes, time_episodes
from sb3_ppo_ext.rollout.sharded_actor import acting_streams_of, division_of
from sb3_ppo_ext.rollout.shared_statistics import SharedNormalization
from sb3_ppo_ext.update.epochs import step_controllers
from sb3_ppo_ext.update.training import Trained, train_on


def collect(
    model: Any, inherited: Callable[..., bool], env: VecEnv, callback: BaseCallback, buffer: RolloutBuffer, n_steps: int
) -> bool:
    """Fills ``buffer``; by ``inherited``, the base class's method, where that is not Stable-Baselines3's own."""
    processes = model._processes
    if not model._alike:
        agree_on_normalization(model, resets=model._last_obs is None)
        model._family.place_environments(model)
    with normalized_for_all(model), together(processes):
        callback = begin_collecting(model, env, callback)
    compare_processes(model)
    copy_parameters(model)
    time_episodes(model, processes)
    model._normalization = SharedNormalization(model)
    try:
        stops, model.num_timesteps = _agreed(
            model, lambda: _collected(model, inherited, env, callback, buffer, n_steps)
        )
    finally:
        model._normalization.put_back()
    merge_episodes(model, processes)
    model._normalization.merge()
    return not stops


def _agreed(model: Any, collected: Callable[[], bool]) -> tuple[bool, int]:
    """Whether any process stops the training, and the timesteps it has made; an error of one is one of all."""
    error, goes_on = None, False
    try:
        goes_on = collected()
    except ProcessFailedError:  # the others know
        raise
    except StoppedElsewhere as stop:
        return True, stop.timesteps
    except BaseException as caught:
        error = caught
    stops, timesteps = model._processes.agree(error, (DivergedError,), stop=not goes_on, count=model.num_timesteps)
    return stops, timesteps


def _collected(
    model: Any, inherited: Callable[..., bool], env: VecEnv, callback: BaseCallback, buffer: RolloutBuffer, n_steps: int
) -> bool:
    model._acting_streams = acting_streams_of(model)
    run = model._run()
    with model._monitor.collecting(model), model._family.collecting(run, callback):
        if not collects_as_sb3(inherited):
            arguments.refuse_own_collection(model)
            model._checkpoints.before_rollout(model)
            return inherited(env, callback, buffer, n_steps)
        actor_of = model._engines.actor_of(run)
        begun = model._checkpoints.before_rollout(model)  # after compiling, before anything is drawn
        return collect_rollouts(
            *(model, env, callback, buffer, n_steps, actor_of),
            begun=begun,
            after_step=model._checkpoints.step_hook(model),
            division=division_of(run, env),
        )


def update(model: Any) -> Trained:
    """Trains on the rollout that was collected last, leaves the records in the logger and moves the controllers."""
    with together(model._processes, DivergedError):
        require_rollout(model)
    compare_processes(model)
    model.knobs = knobs_of(model)
    model.knobs.at(model._current_progress_remaining, model.timesteps_of_all_learns)
    model._update_learning_rate(model.policy.optimizer)
    run, family = model._run(), model._family
    with together(model._processes, DivergedError):
        model._monitor.before_update()
    model.policy.set_training_mode(True)

    def count_epoch() -> None:
        model._n_updates += 1

    with training(run):
        rollout = family.rollout(run)
        runner = model._engines.runner(run, rollout, family.update(run, rollout))
        trained = train_on(run, rollout, runner, count_epoch)
    records = record_update(run, rollout, trained, family.records(run, rollout), model.logger)
    model._monitor.after_update(model, family.findings(run, rollout, records))
    step_controllers(run, "rollout", trained.epochs[-1], rollout)
    return trained
