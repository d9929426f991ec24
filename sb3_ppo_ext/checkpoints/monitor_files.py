"""The monitor.csv files of the training environments, continued where they were at the checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_ext.checkpoints.environments import layers_in_this_process
from sb3_ppo_ext.checkpoints.environments.layers import env_layers
from sb3_ppo_ext.checkpoints.environments.workers import workers_of
from sb3_ppo_ext.checkpoints.journal import Entry, bring_back, record


def save_monitor_files(vec_env: VecEnv, run: Path) -> list[Entry | None]:
    """An entry for each file, in the order of the environments."""
    return [record(Path(path), run) for path in _paths(vec_env)]


def restore_monitor_files(vec_env: VecEnv, entries: list[Entry | None], run: Path) -> list[str]:
    """Brings back the files that the environments write now; lines on those that could not be."""
    lines = []
    for path, entry in zip(_paths(vec_env), entries, strict=False):
        if entry is not None and bring_back({**entry, "path": path}, run) is None:
            lines.append(f"{path}: its rows before the checkpoint are gone; it goes on without them")
    _to_their_ends(vec_env)
    return lines


def _paths(vec_env: VecEnv) -> list[str]:
    here, below = layers_in_this_process(vec_env), workers_of(vec_env.unwrapped)
    of_workers = [] if below is None else [path for paths in below.call(paths_of_worker) for path in paths]
    return [*_paths_of(here), *of_workers]


def _to_their_ends(vec_env: VecEnv) -> None:
    _write_at_the_end(layers_in_this_process(vec_env))
    below = workers_of(vec_env.unwrapped)
    if below is not None:
        below.call(worker_writes_at_the_end)


def paths_of_worker(env: Any) -> list[str]:
    """The files that an environment in a worker process writes."""
    return _paths_of(env_layers(env))


def worker_writes_at_the_end(env: Any) -> None:
    """Moves the handles of those files to their ends."""
    _write_at_the_end(env_layers(env))


def _paths_of(layers: list[Any]) -> list[str]:
    return [writer.file_handler.name for writer in _writers(layers)]


def _write_at_the_end(layers: list[Any]) -> None:
    for writer in _writers(layers):
        writer.file_handler.seek(0, os.SEEK_END)


def _writers(layers: list[Any]) -> list[ResultsWriter]:
    found = [vars(layer).get("results_writer") for layer in layers]
    return [writer for writer in found if isinstance(writer, ResultsWriter)]
