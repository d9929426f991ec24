"""The workers of a ``RayVecEnv``: how they are started, replaced and ended."""

from __future__ import annotations

import time
import warnings
from collections import Counter, deque
from typing import Any

from sb3_ppo_ext.vec_env.remote.arguments import WorkerSettings
from sb3_ppo_ext.vec_env.remote.environments import Built, Environments
from sb3_ppo_ext.vec_env.remote.episodes import EnvRecord
from sb3_ppo_ext.vec_env.remote.failures import RayWorkerError, RayWorkerWarning, error_of, is_one_of
from sb3_ppo_ext.vec_env.remote.packed import Failure, packed_with_code
from sb3_ppo_ext.vec_env.remote.workers import Lost, Worker, answer_of, named

WINDOW = 3600.0  # seconds in which replacements are counted
STARTS = 3  # of a worker, each of which ends while its environments are made
PATIENCE = 5.0  # seconds for a worker to close its environments


class Crew:
    """All workers. ``records`` are those of the environments, by row; ``rows`` those of each worker."""

    def __init__(self, ray: Any, settings: WorkerSettings, records: list[EnvRecord], rows: list[list[int]]) -> None:
        self.ray, self.settings, self.records = ray, settings, records
        self.spaces: tuple[Any, Any] = (None, None)
        self.replacements = 0
        self.workers: list[Worker] = []
        self._actor_class = ray.remote(Environments)
        self._replaced: deque[float] = deque()
        self._required = max(len(rows) if settings.min_workers is None else settings.min_workers, 1)
        self._bring_up([Worker(number, None, mine) for number, mine in enumerate(rows)])

    def replace(self, lost: dict[Worker, str]) -> None:
        """Puts new workers in the place of the lost ones, with their environments as they stood."""
        started, rows = time.monotonic(), [row for worker in lost for row in worker.rows]
        before = [self.records[row].losses for row in rows]
        for worker, reason in lost.items():
            self._count(worker, reason)
            self.workers.remove(worker)
            self._end(worker)
        self._bring_up(list(lost))
        cut = [row for row, losses in zip(rows, before, strict=True) if self.records[row].losses > losses]
        lines = [f"{worker} {reason}" for worker, reason in lost.items()]
        lines += [f"environment {row} begins a new episode: {self.records[row].obstacle}" for row in cut]
        rest = [row for row in rows if row not in cut]
        if rest:
            lines.append(f"{named(rest)} went on as they were, {time.monotonic() - started:.1f} s later")
        warnings.warn("RayVecEnv: " + "; ".join(lines), RayWorkerWarning, stacklevel=2)

    def close(self) -> None:
        """Ends all workers, after their environments were closed where that takes no longer than some seconds."""
        workers, self.workers = self.workers, []
        if not self.ray.is_initialized():
            return
        closed = [worker.actor.close.remote() for worker in workers]
        if closed:
            self.ray.wait(closed, num_returns=len(closed), timeout=PATIENCE)
        for worker in workers:
            self._end(worker)

    def _end(self, worker: Worker) -> None:
        if worker.actor is not None:
            self.ray.kill(worker.actor, no_restart=True)
        worker.actor = None

    def _count(self, worker: Worker, reason: str) -> None:
        now = time.monotonic()
        while self._replaced and self._replaced[0] < now - WINDOW:
            self._replaced.popleft()
        if len(self._replaced) >= self.settings.max_replacements:
            raise RayWorkerError(
                f"{worker} {reason}. It is not replaced: max_replacements={self.settings.max_replacements} have been "
                "within an hour. Repair the environment or the machine, or allow more"
            )
        self._replaced.append(now)
        self.replacements += 1

    def _bring_up(self, workers: list[Worker]) -> None:
        """Starts actors for the workers; where some do not come, other workers take their environments."""
        try:
            late = self._started(workers)
            if late:
                self._share(late)
        except BaseException:
            for worker in (*workers, *self.workers):
                self._end(worker)
            self.workers = []
            raise

    def _started(self, workers: list[Worker]) -> list[Worker]:
        """Has new actors make the environments of the workers; those that did not come in time."""
        begun = any(self.records[row].begun for worker in workers for row in worker.rows)
        seconds = self.settings.start_timeout + (self.settings.replay_timeout if begun else 0)
        deadline, ends = time.monotonic() + seconds, Counter[Worker]()
        waiting = {self._starting(worker): worker for worker in workers}
        while waiting:
            ready, _ = self.ray.wait(list(waiting), timeout=max(deadline - time.monotonic(), 0.0))
            if not ready:
                break
            worker, answer = waiting.pop(ready[0]), answer_of(self.ray, ready[0])
            if isinstance(answer, Built):
                self._add(worker, answer)
                continue
            reason = self._reason(worker, answer) + ", while its environments were made"
            ends[worker] += 1
            if ends[worker] >= STARTS:
                raise RayWorkerError(f"{worker} {reason}, the {STARTS}rd time in turn")
            self._count(worker, reason)
            self._end(worker)
            waiting[self._starting(worker)] = worker
        return list(waiting.values())

    def _reason(self, worker: Worker, answer: Lost | Failure) -> str:
        """Why the worker is to be replaced; raises what is not answered by that."""
        if isinstance(answer, Lost):
            return answer.reason
        if not is_one_of(answer, self.settings.replace_on):
            raise error_of(answer, str(worker))
        return f"raised {answer.kinds[0]}: {answer.text}"

    def _starting(self, worker: Worker) -> Any:
        worker.actor = self._actor_class.options(**self.settings.options()).remote()
        return self._building(worker, worker.rows)

    def _building(self, worker: Worker, rows: list[int]) -> Any:
        records = {row: self.records[row] for row in rows}
        return worker.actor.build.remote(packed_with_code(records), self.settings.replay_timeout)

    def _add(self, worker: Worker, built: Built) -> None:
        self.spaces = built.spaces
        if worker not in self.workers:
            self.workers = sorted([*self.workers, worker], key=lambda member: member.number)
        for row in worker.rows:
            self.records[row].made = True
        for row, reason in built.lost.items():
            self.records[row].cut(reason)
            self.records[row].losses += 1

    def _share(self, late: list[Worker]) -> None:
        """Deals the environments of workers that did not come to those that are there."""
        for worker in late:
            self._end(worker)
        if len(self.workers) < self._required:
            raise RayWorkerError(
                f"{late[0]} did not start within start_timeout={self.settings.start_timeout:g} s: {len(self.workers)} "
                f"workers run, and {self._required} are needed. A worker takes {self.settings.amounts()}; the "
                f"cluster has {self.ray.cluster_resources()}, and {self.ray.available_resources()} of it is free. "
                "Take fewer workers (envs_per_worker), allow fewer (min_workers), or let them share cores: "
                "resources={'CPU': 0}, as for an evaluation during which the other workers wait"
            )
        rows = sorted(row for worker in late for row in worker.rows)
        for position, worker in enumerate(list(self.workers)):
            mine = rows[position :: len(self.workers)]
            if mine:
                worker.rows = sorted([*worker.rows, *mine])
                answer = answer_of(self.ray, self._building(worker, mine))
                if isinstance(answer, Built):
                    self._add(worker, answer)
                else:
                    self.replace({worker: self._reason(worker, answer)})
