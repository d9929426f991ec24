"""The table of docs/language-models.md, which ``python -m tests.benchmarks.language_learning.table`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sb3_ppo_ext.language.evaluation.estimators import standard_error
from tests.benchmarks.language_learning.arms import ARMS, TASKS, settings
from tests.benchmarks.learning import records

FILE = records.FOLDER / "language.jsonl"
COLUMNS = (
    *("task", "arm", "seeds", "constant", "sampled, before", "sampled, after", "of the seeds", "at equal time"),
    *("likeliest, before", "after", "CPU-s"),
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def of_arm(found: Iterable[Mapping[str, Any]], task: str, arm: str) -> list[Mapping[str, Any]]:
    """The records of the arm with the settings that it has today."""
    known = records.identity({"task": task, "seed": 0, "settings": settings(task, arm)})
    return [record for record in found if records.identity({**record, "seed": 0}) == known]


def by_question(runs: Sequence[Mapping[str, Any]], evaluation: int, kind: str) -> np.ndarray:
    """Success [P] at every held-out question, the mean over the runs."""
    return np.asarray(np.array([run["evaluations"][evaluation][kind] for run in runs]).mean(axis=0))


def with_interval(values: np.ndarray) -> str:
    """The mean of [P] numbers and its interval of 95 %, the questions being the independent observations."""
    half = 1.96 * standard_error(values)
    return f"{values.mean():.2f} [{max(values.mean() - half, 0):.2f}, {min(values.mean() + half, 1):.2f}]"


def seconds(runs: Sequence[Mapping[str, Any]]) -> float:
    """The mean CPU seconds of a training."""
    return float(np.mean([run["core_seconds"] for run in runs]))


def success_by(run: Mapping[str, Any], limit: float) -> float:
    """The success of sampled responses after ``limit`` CPU seconds, on the straight line between two evaluations."""
    evaluations = run["evaluations"]
    times = [evaluation["core_seconds"] for evaluation in evaluations]
    return float(np.interp(limit, times, [np.mean(evaluation["sampled"]) for evaluation in evaluations]))


def row(task: str, arm: str, runs: Sequence[Mapping[str, Any]], limit: float) -> str:
    """One arm on one task; ``limit`` is the time of the quickest arm there, in CPU seconds."""
    finished = [run for run in runs if "error" not in run]
    if not finished:
        return f"| {task} | {arm} | not run |{' |' * (len(COLUMNS) - 3)}"
    seeds = [float(np.mean(run["evaluations"][-1]["sampled"])) for run in finished]
    greedy = [by_question(finished, evaluation, "greedy").mean() for evaluation in (0, -1)]
    cells = [
        str(len(finished)) + (f", {len(runs) - len(finished)} diverged" if len(runs) > len(finished) else ""),
        f"{finished[0]['constant']:.2f}",
        f"{by_question(finished, 0, 'sampled').mean():.2f}",
        with_interval(by_question(finished, -1, "sampled")),
        f"{min(seeds):.2f} to {max(seeds):.2f}",
        f"{np.mean([success_by(run, limit) for run in finished]):.2f}",
        *(f"{mean:.2f}" for mean in greedy),
        f"{seconds(finished):.0f}",
    ]
    return f"| {task} | {arm} | {' | '.join(cells)} |"


def rows(found: list[dict[str, Any]], task: str) -> list[str]:
    """All arms on a task, those without records too. The time is that of the quickest arm that learns by trying."""
    runs = {arm: of_arm(found, task, arm) for arm in ARMS}
    trying = [of_one for arm, of_one in runs.items() if not ARMS[arm].get("supervised")]
    finished = [[run for run in of_one if "error" not in run] for of_one in trying]
    limit = min((seconds(some) for some in finished if some), default=0.0)
    return [row(task, arm, of_one, limit) for arm, of_one in runs.items()]


def table(found: list[dict[str, Any]]) -> str:
    """All tasks."""
    return "\n".join([HEADER, *(line for task in TASKS for line in rows(found, task))])


if __name__ == "__main__":
    print(table(records.read(FILE)))
