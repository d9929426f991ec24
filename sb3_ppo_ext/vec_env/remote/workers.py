"""A worker: an actor with some of the environments, and its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Worker:
    """An actor and the rows that it steps: indices among all environments, in their order."""

    number: int
    actor: Any
    rows: list[int]

    def __str__(self) -> str:
        return f"worker {self.number} ({named(self.rows)})"


@dataclass(frozen=True)
class Lost:
    """Takes the place of the answer of a worker that is gone."""

    reason: str


def answer_of(ray: Any, call: Any) -> Any:
    """Waits for the answer to a call; a ``Lost`` where the process or its machine is gone."""
    errors = ray.exceptions
    try:
        return ray.get(call)
    except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as error:
        text = " ".join(str(error).split())
        return Lost("died: " + text.partition(" Some common causes")[0])  # a list that Ray adds to every death


def named(rows: list[int]) -> str:
    """Rows for messages: "environments 4 to 7"."""
    if len(rows) == 1:
        return f"environment {rows[0]}"
    together = rows == list(range(rows[0], rows[-1] + 1))
    return f"environments {rows[0]} to {rows[-1]}" if together else "environments " + ", ".join(map(str, rows))
