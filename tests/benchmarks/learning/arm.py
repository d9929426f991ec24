"""One side of a comparison, as plain data: what is written in an arm is what a record of a run repeats.

``environment`` holds the keywords of ``runs.environments``, ``arguments`` those of the algorithm. Where an arm differs
from task to task, ``tasks`` holds what replaces either. The source of each arm stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BOTH = {"norm_obs": True, "norm_reward": True}
OBSERVATIONS = {"norm_obs": True, "norm_reward": False}
ONE = {"n_envs": 1, "normalize": BOTH}
EIGHT = {"n_envs": 8, "normalize": BOTH}


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    algorithm: str = "PPOX"
    environment: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    steps: int = 1_000_000
    everywhere: bool = True  # False: on the tasks of ``tasks`` alone

    def runs_on(self, task: str) -> bool:
        """Whether the arm has settings for the task."""
        return self.everywhere or task in self.tasks

    def settings(self, task: str) -> dict[str, Any]:
        """Everything that a run of this arm on the task depends on, but the seed."""
        if not self.runs_on(task):
            raise ValueError(f"task {task!r}: the arm has settings for {', '.join(self.tasks)} alone")
        changed = self.tasks.get(task, {})
        return {
            "algorithm": self.algorithm,
            "environment": {**self.environment, **changed.get("environment", {})},
            "arguments": {**self.arguments, **changed.get("arguments", {})},
            "steps": changed.get("steps", self.steps),
        }
