"""The table of docs/language-models.md, which ``python -m tests.benchmarks.language_learning.table`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sb3_ppo_ext.language.evaluation.estimators import standard_error
from tests.benchmarks.language_learning.arms import ARMS, TASKS, settings
from tests.benchmarks.learning import records

FILE = records.FOLDER / "language.jsonl"
COLUMNS = (
    *("task", "arm", "seeds", "constant", "sampled, before", "sampled, after", "of the seeds"),
    *("likeliest, before", "after", "CPU-s"),
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def of_arm(found: Iterable[Mapping[str, Any]], task: str, arm: str) -> list[Mapping[str, Any]]:
    """The records of the arm with the settings that it has today."""
    known = records.identity({"task": task, "seed": 0, "settings": settings(task, arm)})
    return [record for record in found if records.identity({**record, "seed": 0}) == known]


def by_question(runs: list[Mapping[str, Any]], when: str, kind: str) -> np.ndarray:
    """Success [P] at every held-out question, the mean over the runs."""
    return np.asarray(np.array([run[when][kind] for run in runs]).mean(axis=0))


def with_interval(values: np.ndarray) -> str:
    """The mean of [P] numbers and its interval of 95 %, the questions being the independent observations."""
    half = 1.96 * standard_error(values)
    return f"{values.mean():.2f} [{max(values.mean() - half, 0):.2f}, {min(values.mean() + half, 1):.2f}]"


def row(found: Iterable[Mapping[str, Any]], task: str, arm: str) -> str:
    """One arm on one task."""
    runs = of_arm(found, task, arm)
    finished = [run for run in runs if "after" in run]
    if not finished:
        return f"| {task} | {arm} | not run | | | | | | | |"
    seeds = [float(np.mean(run["after"]["sampled"])) for run in finished]
    greedy = [by_question(finished, when, "greedy").mean() for when in ("before", "after")]
    cells = [
        str(len(finished)) + (f", {len(runs) - len(finished)} diverged" if len(runs) > len(finished) else ""),
        f"{finished[0]['constant']:.2f}",
        f"{by_question(finished, 'before', 'sampled').mean():.2f}",
        with_interval(by_question(finished, "after", "sampled")),
        f"{min(seeds):.2f} to {max(seeds):.2f}",
        *(f"{mean:.2f}" for mean in greedy),
        f"{np.mean([run['core_seconds'] for run in finished]):.0f}",
    ]
    return f"| {task} | {arm} | {' | '.join(cells)} |"


def table(found: list[dict[str, Any]]) -> str:
    """All arms on all tasks, those without records too."""
    return "\n".join([HEADER, *(row(found, task, arm) for task in TASKS for arm in ARMS)])


if __name__ == "__main__":
    print(table(records.read(FILE)))
