"""A training by several processes: what each of them makes of the settings, which are those of all together."""

from __future__ import annotations

import argparse
import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import rl_zoo3.exp_manager
from stable_baselines3.common.utils import set_random_seed

from sb3_ppo_ext.distributed.processes import Processes
from sb3_ppo_ext.distributed.shards import dealt


class Share(NamedTuple):
    """The environments of this process among those of all."""

    n_envs: int
    first: int  # index in the run of the first of them


def share_of(n_envs: int, shards: int | None, processes: Processes) -> Share:
    """The share of this process; ``ValueError`` where the environments cannot be divided."""
    if shards is None and processes.count == 1:
        return Share(n_envs, 0)
    count = processes.count if shards is None else shards
    if count < processes.count:
        raise ValueError(
            f"shards={count}: {processes.count} processes need a shard each. Start {count} or fewer processes, or "
            f"train with -params shards:{processes.count}, with which the run has other numbers"
        )
    if n_envs % count:
        what = f"{count} processes" if shards is None else f"{count} shards"
        smaller, larger = n_envs // count * count, (n_envs // count + 1) * count
        raise ValueError(
            f"n_envs={n_envs}: they are the environments of all processes, and cannot be divided among {what}; "
            f"{f'{smaller} or ' if smaller else ''}{larger} can be: -params n_envs:{smaller or larger}"
        )
    own, each = dealt(count, processes.count, processes.rank), n_envs // count
    return Share(len(own) * each, own.start * each)


@contextlib.contextmanager
def numbered_from(first: int) -> Iterator[None]:
    """rl_zoo3's environments have indices from ``first`` on, in the names of their monitor files too."""
    original = rl_zoo3.exp_manager.make_vec_env
    rl_zoo3.exp_manager.make_vec_env = partial(original, start_index=first)
    try:
        yield
    finally:
        rl_zoo3.exp_manager.make_vec_env = original


@contextlib.contextmanager
def quiet_unless_first(processes: Processes) -> Iterator[None]:
    """Rank 0 alone prints and warns; errors are shown by all."""
    if processes.rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def of_this_process(command: str, arguments: Sequence[str], processes: Processes) -> list[str]:
    """The arguments without what rank 0 alone does; a search is refused."""
    if processes.count > 1 and any(option in arguments for option in ("--optimize-hyperparameters", "-optimize")):
        argparse.ArgumentParser(prog=f"ppox {command}", add_help=False).error(
            f"a search is made by one process, and {processes.count} were started together: start ppox optimize by "
            "itself, as often as there are processors, each with the same --study-name and --storage"
        )
    return [argument for argument in arguments if processes.rank == 0 or argument != "--track"]


class OfProcesses(rl_zoo3.exp_manager.ExperimentManager):  # type: ignore[misc]  # rl_zoo3 is followed as Any
    """An experiment of which rank 0 alone writes and evaluates."""

    processes: Processes
    seed: int
    save_path: str
    params_path: str
    continue_training: bool

    def _agree(self, args: argparse.Namespace) -> None:
        """All processes have the folder and the seed of rank 0, and go on with its run or not."""
        if self.processes.count == 1:
            return
        chosen = (self.save_path, self.params_path, self.seed, self.continue_training)
        self.save_path, self.params_path, self.seed, self.continue_training = self.processes.objects(chosen)[0]
        args.seed = self.seed
        set_random_seed(self.seed)

    def create_callbacks(self) -> None:
        """rl_zoo3's callbacks, which write and evaluate."""
        if self.processes.rank == 0:
            super().create_callbacks()

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self.processes.rank == 0:
            super()._save_config(saved_hyperparams)

    def save_trained_model(self, model: Any) -> None:
        """Saves as rl_zoo3 does."""
        if self.processes.rank == 0:
            super().save_trained_model(model)
