"""A model made from the newest checkpoint of a folder; its next ``learn()`` finishes the run."""

from __future__ import annotations

import dataclasses
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_ext.checkpoints.environments import fresh_seed, restore_divided, restore_environments
from sb3_ppo_ext.checkpoints.folder import stored
from sb3_ppo_ext.checkpoints.logs import continued_logger
from sb3_ppo_ext.checkpoints.monitor_files import restore_monitor_files
from sb3_ppo_ext.checkpoints.reading import Checkpoint, CheckpointWarning, required
from sb3_ppo_ext.checkpoints.settings import Checkpoints
from sb3_ppo_ext.checkpoints.shares import Share, share_of, state_of
from sb3_ppo_ext.checkpoints.state import LearnCall, restore_watch
from sb3_ppo_ext.checkpoints.writing import CheckpointWriter
from sb3_ppo_ext.distributed.group import join_processes
from sb3_ppo_ext.distributed.processes import Processes, together

Model = TypeVar("Model", bound=BaseAlgorithm)


@dataclass
class Resumed:
    """A run that the next ``learn()`` of its model continues."""

    folder: Path  # of the run
    newest: list[Path]  # its checkpoint
    manifest: dict[str, Any]
    state: dict[str, Any]
    callback: MaybeCallback
    total_timesteps: int | None  # another end than that of the run

    @property
    def iteration(self) -> int:
        """Rollouts that the run has trained on."""
        return int(self.state["loop"]["iteration"])

    def whole(self, call: LearnCall) -> LearnCall:
        """The arguments of the run, where those of this ``learn()`` do not say otherwise."""
        loop = self.state["loop"]
        asked = loop["asked_for"] if self.total_timesteps is None else self.total_timesteps
        if call.total_timesteps not in (None, asked):
            raise ValueError(
                f"total_timesteps={call.total_timesteps}: the run was begun with {loop['asked_for']}, which its "
                "schedules count on. Call learn() to finish it, or "
                f"resume(..., total_timesteps={call.total_timesteps}) for another end"
            )
        if call.callback is not None and self.callback is not None:
            raise ValueError("callback: given to resume() and to learn(); one of them is enough")
        return call._replace(
            total_timesteps=asked,
            callback=call.callback if call.callback is not None else self.callback,
            log_interval=loop["log_interval"] if call.log_interval == 1 else call.log_interval,
            tb_log_name=loop["tb_log_name"],
        )

    def rest(self, model: Any, whole: LearnCall) -> LearnCall | None:
        """The arguments for the rest of the run; None where it is finished."""
        loop = self.state["loop"]
        last = loop["last_timestep"]
        if self.total_timesteps is not None:
            last = loop["first_timestep"] + self.total_timesteps
            if last < model.num_timesteps:
                raise ValueError(
                    f"total_timesteps={self.total_timesteps}: the run has {model.num_timesteps} timesteps already"
                )
        finished = self.manifest["finished"] and last <= loop["last_timestep"]
        if finished or last <= model.num_timesteps:
            if model._processes.rank == 0:
                print(f"{self.folder}: the run is finished, with {model.num_timesteps} timesteps")
            return None
        interval = None if whole.log_interval is None else 1  # which of them are logged is the run's count
        left = last - model.num_timesteps
        return whole._replace(total_timesteps=left, log_interval=interval, reset_num_timesteps=False)

    def writer(self, settings: Checkpoints | None) -> CheckpointWriter:
        """Writes into the folder of the run, or into another that ``settings`` name."""
        settings = settings or dataclasses.replace(self.state["settings"], folder=self.folder)
        return CheckpointWriter(settings, self.manifest["run"])


def resume(
    cls: type[Model],
    folder: str | Path,
    env: GymEnv | str,
    callback: MaybeCallback = None,
    *,
    total_timesteps: int | None = None,
    **kwargs: Any,
) -> Model:
    """The model of a run that was saved by ``learn(checkpoint=...)``; its ``learn()`` finishes the run.

    It ends as if the run had never stopped, bit for bit on the same kind of machine. The newest usable checkpoint of
    the folder is taken; what could not be brought back, an environment say, is named in a warning.

    :param folder: that of the run
    :param env: made as for the run, with the same wrappers
    :param callback: the callbacks of the run, in their order
    :param total_timesteps: to train to another end than the run's; schedules follow
    :param kwargs: as for ``load``
    """
    run = Path(folder).expanduser().absolute()
    processes = join_processes()
    found = _chosen(cls, run, processes)
    share = share_of(processes, kwargs.get("shards", found.manifest.get("shards")))
    _check_env(env, run, found, share)
    algorithm: Any = cls  # whose load() takes the name of a task, too
    state, lines = state_of(found, share)
    model = algorithm.load(found.path / "model.zip", env=env, force_reset=False, **kwargs)
    model._checkpoints.resumed = Resumed(run, stored(run)[:1], found.manifest, state, callback, total_timesteps)
    model._engines.pinned = state["compiles"]
    _restore_statistics(model, found.path / "vecnormalize.pkl")
    lines += [*_restore_environments(model, state), *restore_monitor_files(model.env, state["monitor_files"], run)]
    if processes.rank == 0:
        model.set_logger(continued_logger(state["logger"], run, model.num_timesteps))
    restore_watch(model, state["watch"])
    model._random_state = state["streams"]
    if lines and processes.rank == 0:
        warnings.warn(f"{run}: {'; '.join(lines)}", CheckpointWarning, stacklevel=2)
    resumed: Model = model
    return resumed


def _chosen(cls: Any, run: Path, processes: Processes) -> Checkpoint:
    """The newest usable checkpoint that rank 0 finds: network file systems do not show all the same at once."""
    found = None
    with together(processes, ValueError):
        if processes.rank == 0:
            found = required(run)
    chosen: Checkpoint = processes.objects(found)[0]
    name = chosen.manifest["class"]
    if cls.__qualname__ != name:
        raise ValueError(f"{run}: its run is one of {name}; resume it by {name}.resume(...), not {cls.__qualname__}'s")
    return chosen


def _check_env(env: Any, run: Path, found: Checkpoint, share: Share) -> None:
    here, of_all = env.num_envs if isinstance(env, VecEnv) else 1, found.manifest["n_envs"]
    if here != share.of(of_all):
        of_process = "" if share.of(of_all) == of_all else f", {share.of(of_all)} of them those of this process"
        raise ValueError(
            f"env: it has {here} environments, and the run in {run} has {of_all}{of_process}; pass as many"
        )


def _restore_statistics(model: Any, path: Path) -> None:
    """Those of ``VecNormalize``, which go on where all environments begin new episodes."""
    normalizing = model.get_vec_normalize_env()
    if normalizing is not None and path.exists():
        saved = pickle.loads(path.read_bytes())
        normalizing.ret_rms = saved.ret_rms
        if normalizing.norm_obs and saved.norm_obs:
            normalizing.obs_rms = saved.obs_rms


def _restore_environments(model: Any, state: dict[str, Any]) -> list[str]:
    """The environments as they were, or new episodes that are not the run's first ones again; lines on what differs."""
    saved = state["environments"]
    restore = restore_divided if isinstance(saved, list) else restore_environments
    lines = None if saved is None else restore(model.env, saved)
    begin_anew = lines is None or lines.new_episodes
    if model._processes.agree(None, stop=begin_anew)[0]:  # where those of one process do, all do
        model._last_obs = None  # so that learn() begins with a reset
        seed = fresh_seed(model.seed, model.num_timesteps)
        first = 0 if model._shards is None else model._shards.first_of(model.n_envs)
        model.env.seed(None if seed is None else seed + first)
    else:
        vars(model).update(pickle.loads(state["last"]))
    return lines or []
