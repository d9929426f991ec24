"""The statistics of ``VecNormalize`` over the environments of all shards, and so of all processes.

Within a rollout they are frozen, and every shard collects what it sees. They take that in when the rollout has ended,
shard by shard, and whenever it is as much as they have seen before: in the first rollout, therefore, after the reset
and after 1, 2, 4, ... further steps. What a ``VecNormalize`` has seen before counts once, its prior as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_ppo_ext.distributed.processes import Processes, StoppedElsewhere
from sb3_ppo_ext.distributed.shards import Shards

FOLDED = 128  # steps whose rows are held before they become moments


class SharedStatistics(RunningMeanStd):
    """Statistics in the place of those of a ``VecNormalize``, while its environments are stepped."""

    def __init__(self, statistics: RunningMeanStd, shards: Shards, processes: Processes, *, every_step: bool) -> None:
        """``every_step``: takes in each step of all environments at once, as one ``VecNormalize`` over all does."""
        super().__init__(shape=np.shape(statistics.mean))
        self.mean, self.var, self.count = statistics.mean, statistics.var, statistics.count
        self.shards, self.processes, self.every_step = shards, processes, every_step
        self._begin()

    def _begin(self) -> None:
        self._batches: list[np.ndarray] = []  # [N, ...] each, of single steps
        self._seen = 0  # rows of this process
        self._of_shards = [empty(np.shape(self.mean)) for _ in self.shards.own]

    def update(self, arr: np.ndarray) -> None:
        """Collects a step ``arr`` [N, ...] of the environments of this process."""
        if self.every_step:
            self._require_that_all_go_on()
            super().update(self._of_all(arr))
            return
        self._batches.append(np.array(arr))
        self._seen += len(arr)
        if self.shards.of_all(self._seen) >= int(self.count):  # without the prior, which is less than one row
            self._require_that_all_go_on()
            self.merge()
        elif len(self._batches) == FOLDED:
            self._fold()

    def _require_that_all_go_on(self) -> None:
        stopped, timesteps = self.processes.agree(None)
        if stopped:
            raise StoppedElsewhere(timesteps)

    def _of_all(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all environments, in their order and with their bits."""
        if self.processes.count == 1:
            return rows
        own = torch.from_numpy(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
        of_all = torch.zeros(self.shards.of_all(len(own)), dtype=torch.uint8)
        start = self.shards.first_of(len(own))
        of_all[start : start + len(own)] = own
        self.processes.add(of_all)
        return of_all.numpy().view(rows.dtype).reshape(-1, *rows.shape[1:])

    def _fold(self) -> None:
        """Rows become moments of their shard, in float64."""
        batches, self._batches = self._batches, []
        for index, moments in enumerate(self._of_shards if batches else ()):
            parts = [np.split(batch, len(self._of_shards))[index] for batch in batches]
            rows = np.concatenate(parts).astype(np.float64)
            moments.update_from_moments(rows.mean(axis=0), rows.var(axis=0), len(rows))

    def merge(self) -> None:
        """Takes in what all shards have collected, in their order; called by all processes."""
        self._fold()
        shape = np.shape(self.mean)
        table = np.zeros((self.shards.count, 2, int(np.prod(shape)) + 1))
        for shard, moments in zip(self.shards.own, self._of_shards, strict=True):
            table[shard, :, 0] = moments.count
            table[shard, 0, 1:], table[shard, 1, 1:] = np.ravel(moments.mean), np.ravel(moments.var)
        self.processes.add(torch.from_numpy(table))
        for of_shard in table:
            if of_shard[0, 0]:
                mean, var = of_shard[:, 1:].reshape(2, *shape)
                self.update_from_moments(mean, var, of_shard[0, 0].item())
        self._begin()

    def plain(self) -> RunningMeanStd:
        """The statistics as a ``VecNormalize`` has them."""
        return plain(self.mean, self.var, self.count)

    def __reduce__(self) -> tuple[Any, ...]:
        """A file, or a copy for an evaluation, has plain statistics."""
        return plain, (self.mean, self.var, self.count)

    def state_dict(self) -> dict[str, Any]:
        """What is collected in the middle of a rollout."""
        return {"batches": list(self._batches), "seen": self._seen, "shards": [vars(rms) for rms in self._of_shards]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what was collected."""
        self._batches, self._seen = list(state["batches"]), state["seen"]
        for moments, saved in zip(self._of_shards, state["shards"], strict=True):
            vars(moments).update(saved)


def plain(mean: np.ndarray, var: np.ndarray, count: float) -> RunningMeanStd:
    """Statistics of those numbers."""
    statistics = RunningMeanStd(shape=np.shape(mean))
    statistics.mean, statistics.var, statistics.count = mean, var, count
    return statistics


def empty(shape: tuple[int, ...]) -> RunningMeanStd:
    """Statistics of nothing, without Stable-Baselines3's prior."""
    return plain(np.zeros(shape), np.zeros(shape), 0.0)


class SharedNormalization:
    """The statistics of all ``VecNormalize`` layers of a model's environment, shared from now to ``put_back``."""

    def __init__(self, model: Any) -> None:
        self.shared: list[tuple[Callable[[Any], None], SharedStatistics]] = []
        if model._shards is None or model.env is None:
            return
        for put, statistics in statistics_of(model.env):
            every_step = model.vec_normalize_sync == "step"
            shared = SharedStatistics(statistics, model._shards, model._processes, every_step=every_step)
            self.shared.append((put, shared))
        self.put()

    def put(self) -> None:
        """Has the layers collect for all."""
        for put, shared in self.shared:
            put(shared)

    def put_back(self) -> None:
        """Gives the layers plain statistics again."""
        for put, shared in self.shared:
            put(shared.plain())

    def merge(self) -> None:
        """Takes in what has been collected; called by all processes after ``put_back``."""
        for put, shared in self.shared:
            shared.merge()
            put(shared.plain())

    def state(self) -> list[dict[str, Any]]:
        """What is collected in the middle of a rollout."""
        return [shared.state_dict() for _, shared in self.shared]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Goes on from what was collected."""
        for (_, shared), saved in zip(self.shared, state, strict=True):
            shared.load_state_dict(saved)


def layers_of(env: VecEnv) -> list[VecNormalize]:
    """The ``VecNormalize`` layers of a vector environment, outermost first."""
    found = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            found.append(env)
        env = env.venv
    return found


def statistics_of(env: VecEnv) -> Iterator[tuple[Callable[[Any], None], RunningMeanStd]]:
    """All statistics of the ``VecNormalize`` layers, each with a function that replaces them."""
    for layer in layers_of(env):
        attributes = vars(layer)
        for name in ("obs_rms", "ret_rms"):
            statistics = attributes.get(name)
            holder: Any = statistics if isinstance(statistics, dict) else attributes
            for key in statistics if isinstance(statistics, dict) else (name,) if statistics is not None else ():
                yield _putter(holder, key), holder[key]


def _putter(holder: dict[str, Any], key: str) -> Callable[[Any], None]:
    def put(statistics: Any) -> None:
        holder[key] = statistics

    return put
