"""Calls to all workers: answers are accepted as they come, and those of lost workers from the ones in their place."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sb3_ppo_ext.vec_env.remote.crew import Crew
from sb3_ppo_ext.vec_env.remote.failures import error_of, is_one_of
from sb3_ppo_ext.vec_env.remote.packed import Failure
from sb3_ppo_ext.vec_env.remote.workers import Lost, Worker, answer_of

REPEATS = 2  # of one step whose worker is lost each time, before its episodes are cut


@dataclass
class Pending:
    """A call of one method in some rows, of which not all workers have answered."""

    method: str
    argument_of: Callable[[list[int]], Any]  # the second argument, for the rows of a worker
    accept: Callable[[list[int], Any], None]  # called with the rows and the answer of each worker
    calls: dict[Any, tuple[Worker, list[int]]] = field(default_factory=dict)
    losses: Counter[int] = field(default_factory=Counter)  # of workers meanwhile, by row


def submit(crew: Crew, pending: Pending, rows: Iterable[int]) -> Pending:
    """Sends the call to the workers of ``rows``."""
    wanted = set(rows)
    for worker in crew.workers:
        mine = [row for row in worker.rows if row in wanted]
        if mine:
            call = getattr(worker.actor, pending.method).remote(mine, pending.argument_of(mine))
            pending.calls[call] = (worker, mine)
    return pending


def collect(crew: Crew, pending: Pending) -> None:
    """Accepts the answers of all rows."""
    while pending.calls:
        lost = _received(crew, pending)
        missing = [row for _, mine in pending.calls.values() for row in mine]
        pending.calls.clear()
        if lost:
            pending.losses.update(missing)
            for row in missing:
                if pending.method == "step" and pending.losses[row] > REPEATS:
                    crew.records[row].cut(f"its worker was lost {pending.losses[row]} times in the same step")
            crew.replace(lost)
            submit(crew, pending, missing)


def _received(crew: Crew, pending: Pending) -> dict[Worker, str]:
    """Accepts the answers; the workers that are lost, with the reason. Their calls are left in ``pending``."""
    lost: dict[Worker, str] = {}
    failed: Exception | None = None
    for call, answer in _answers(crew, list(pending.calls)):
        worker, mine = pending.calls[call]
        if isinstance(answer, Lost):
            lost[worker] = answer.reason
        elif isinstance(answer, Failure) and is_one_of(answer, crew.settings.replace_on):
            lost[worker] = f"raised {answer.kinds[0]} in environment {answer.row}: {answer.text}"
        else:
            del pending.calls[call]
            if isinstance(answer, Failure):
                failed = failed or error_of(answer, str(worker))
            else:
                pending.accept(mine, answer)
    if failed is not None:  # after every answer, so that the records are those of the other environments
        raise failed
    return lost


def _answers(crew: Crew, calls: list[Any]) -> list[tuple[Any, Any]]:
    """Each call with its answer, or with a ``Lost``."""
    ray, limit, started = crew.ray, crew.settings.step_timeout, time.monotonic()
    try:
        return list(zip(calls, ray.get(calls, timeout=limit), strict=True))
    except ray.exceptions.RayError:
        left = None if limit is None else max(limit - (time.monotonic() - started), 0.0)
        ready, hung = ray.wait(calls, num_returns=len(calls), timeout=left)
        found = [(call, answer_of(ray, call)) for call in ready]
        return [*found, *((call, Lost(f"did not answer within step_timeout={limit:g} s")) for call in hung)]
