"""Scores from records: of one run, of an arm on a task, and what both sides of a comparison share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.learning import records
from tests.benchmarks.learning.arms import ARMS
from tests.benchmarks.learning.intervals import Scores, normalised

Record = Mapping[str, Any]
OF_FRESH_SEEDS = ("confirm", "entries")  # stages
REFERENCE = "sb3"  # has 1 on the scale of normalised scores


class Results:
    """The records of all files, by stage, arm and task."""

    def __init__(self, by_stage: Mapping[str, list[dict[str, Any]]]) -> None:
        self.by_stage = by_stage
        self.random = {record["task"]: mean_return(record) for record in by_stage.get("random", [])}

    @classmethod
    def of_folder(cls, folder: Path = records.FOLDER) -> Results:
        """The records of a folder; a stage is a file's name."""
        return cls({path.stem: records.read(path) for path in sorted(folder.glob("*.jsonl"))})

    def of(self, stage: str, arm: str, task: str) -> list[Record]:
        """The records of an arm on a task, by seed, under whatever name its settings were run."""
        names = of_these_settings(arm, task)
        found = [record for record in self.by_stage.get(stage, []) if record["task"] == task and record["arm"] in names]
        return sorted(found, key=lambda record: int(record["seed"]))

    def fresh(self, arm: str, task: str) -> list[Record]:
        """The runs with fresh seeds and an arm's settings on a task, by seed, in whatever stage and under any name."""
        settings = ARMS[arm].settings(task)
        found = (record for stage in OF_FRESH_SEEDS for record in self.by_stage.get(stage, []))
        by_seed = {
            record["seed"]: record for record in found if (record["task"], record["settings"]) == (task, settings)
        }
        return [by_seed[seed] for seed in sorted(by_seed)]

    def arms(self, stage: str) -> list[str]:
        """The arms that a stage has records of, in the order of the file."""
        return list(dict.fromkeys(str(record["arm"]) for record in self.by_stage.get(stage, [])))

    def scores(self, stage: str, arm: str, task: str, kind: str = "deterministic") -> NDArray[np.float64]:
        """One score for each run of an arm on a task."""
        return self.scores_of(self.of(stage, arm, task), kind)

    def scores_of(self, found: Iterable[Record], kind: str = "deterministic") -> NDArray[np.float64]:
        """One score for each run that was evaluated in this way: the mean of its last episodes.

        A run that diverged has that of random actions.
        """
        scores = [
            self.random[run["task"]] if "error" in run else mean_return(run, kind)
            for run in found
            if kind in run or "error" in run
        ]
        return np.array(scores, dtype=float)

    def normalised(self, stage: str, arm: str, tasks: Iterable[str], reference: str = REFERENCE) -> Scores:
        """Scores on the scale of 0 for random actions and 1 for the mean of the reference, of tasks that have both."""
        found = {}
        for task in tasks:
            theirs, runs = self.scores(stage, reference, task), self.scores(stage, arm, task)
            if len(theirs) and len(runs) and task in self.random:
                found[task] = normalised(runs, self.random[task], float(theirs.mean()))
        return found

    def of_one_processor(
        self, stage: str, arms: Iterable[str], tasks: Sequence[str]
    ) -> dict[tuple[str, str], list[Record]]:
        """The records by arm and task whose seconds are comparable: of the processor that made most of these.

        Older runs do not say theirs, and are taken for those of one.
        """
        found = {(arm, task): self.of(stage, arm, task) for arm in arms for task in tasks}
        made = Counter(processor_of(record) for runs in found.values() for record in runs)
        most = max(made, key=made.__getitem__, default="")
        return {key: [record for record in runs if processor_of(record) == most] for key, runs in found.items()}

    def core_hours(self, stage: str) -> float:
        """CPU time of all runs of a stage."""
        return sum(float(record["core_seconds"]) for record in self.by_stage.get(stage, [])) / 3600


@cache
def of_these_settings(arm: str, task: str) -> frozenset[str]:
    """The arm and all others with its settings on the task: rl_zoo3's for Ant are the defaults, and are run once."""
    if arm not in ARMS or not ARMS[arm].runs_on(task):
        return frozenset({arm})
    settings = ARMS[arm].settings(task)
    return frozenset(name for name, other in ARMS.items() if other.runs_on(task) and other.settings(task) == settings)


def processor_of(record: Record) -> str:
    """The processor of a run, "" where it is not known."""
    return str(record.get("versions", {}).get("processor", ""))


def mean_return(record: Record, kind: str = "deterministic") -> float:
    """The mean return of a run's last episodes: "deterministic", "sampled", or "last_100" of the training."""
    return float(record["last_100"] if kind == "last_100" else np.mean(record[kind]))


def seconds_to_reach(record: Record, level: float) -> float | None:
    """Core-seconds of training until the mean of the last 100 episodes first reached ``level``; None where it did not.

    Evaluations count among the core-seconds of a record and are left in: they are some hundredths of them.
    """
    steps = record["settings"]["steps"]
    reached = [count for count, value in record.get("curve", ()) if value is not None and value >= level]
    return None if not reached else float(record["core_seconds"]) * min(reached[0] / steps, 1.0)
