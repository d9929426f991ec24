"""The tables of the page, in Markdown; every number in them comes from the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.learning.arms import ARMS
from tests.benchmarks.learning.intervals import (
    Interval,
    Scores,
    difference,
    interquartile_mean,
    interval,
    mean,
    probability_of_improvement,
)
from tests.benchmarks.learning.plan import PLAN
from tests.benchmarks.learning.results import REFERENCE, Results, mean_return, seconds_to_reach

FEWEST = 3  # runs of which an interval is given
FEWEST_TASKS = 3  # over which arms are compared: one task says what the recipe does there, which another table has
NOTHING = "·"
MOST_COLUMNS = 4  # of tasks
Row = Sequence[str]


def table(head: Row, rows: Iterable[Row]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arms_by_tasks(tasks: Sequence[str], rows: Iterable[Row]) -> str:
    """A table of a row for each arm, its name first; where there are many tasks each has a row, for a page's width."""
    lines = [["", *tasks], *rows]
    if len(tasks) > MOST_COLUMNS:
        lines = [list(line) for line in zip(*lines, strict=True)]
    return table(lines[0], lines[1:])


def number(value: float) -> str:
    """A score: whole from 1,000 on, else three significant digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(scores: NDArray[np.float64]) -> str:
    """The mean of an arm's runs, their number, and from three on the interval of the mean."""
    if not len(scores):
        return NOTHING
    text = f"{number(float(scores.mean()))} ({len(scores)})"
    return text if len(scores) < FEWEST else f"{text} {between(interval({'task': scores}, mean))}"


def between(found: Interval) -> str:
    """The ends of an interval."""
    return f"[{number(found.low)}, {number(found.high)}]"


def signed(found: Interval) -> str:
    """A difference and its interval."""
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def effect(found: Interval, *sides: Mapping[str, Sized]) -> str:
    """A difference, with its interval where each side has ``FEWEST`` runs of every task."""
    return signed(found) if min(map(fewest, sides)) >= FEWEST else f"{found.value:+.2f}"


def by_task(
    results: Results,
    stage: str,
    arms: Iterable[str],
    tasks: Sequence[str],
    kind: str,
    names: Mapping[str, str] | None = None,
) -> str:
    """Arms by tasks; an arm is called by its own name, or by that in ``names``."""
    called = {arm: f"`{arm}`" for arm in arms} | dict(names or {})
    rows = [[name, *(cell(results.scores(stage, arm, task, kind)) for task in tasks)] for arm, name in called.items()]
    return arms_by_tasks(tasks, rows)


def fewest(scores: Mapping[str, Sized]) -> int:
    """The smallest number of runs of a task; one run has no spread, and an interval from it no width."""
    return min(map(len, scores.values()), default=0)


def with_spread(ours: Scores, theirs: Scores) -> tuple[Scores, Scores]:
    """Both sides' scores on the tasks of which each has ``FEWEST`` runs."""
    tasks = [task for task in ours if min(len(ours[task]), len(theirs[task])) >= FEWEST]
    return {task: ours[task] for task in tasks}, {task: theirs[task] for task in tasks}


def together(results: Results, stage: str, arms: Iterable[str], tasks: Sequence[str]) -> str:
    """Normalised scores over the tasks that both an arm and the reference have, and the difference to the reference."""
    rows, reference = [], results.normalised(stage, REFERENCE, tasks)
    for arm in arms:
        ours = results.normalised(stage, arm, tasks)
        runs = sum(len(scores) for scores in ours.values())
        theirs = {task: reference[task] for task in ours}
        if arm == REFERENCE or fewest(ours) < FEWEST or fewest(theirs) < 2:
            continue
        ahead = difference(ours, theirs, mean)
        rows.append(
            [
                *(f"`{arm}`", f"{len(ours)}", f"{runs}"),
                *(f"{found.value:.2f} {between(found)}" for found in (interval(ours, mean), ahead)),
                f"{interval(ours, interquartile_mean).value:.2f}",
                f"{probability_of_improvement(ours, theirs):.2f}",
            ]
        )
    if not rows:
        return f"No arm has {FEWEST} runs of each task that it shares with `{REFERENCE}` yet."
    head = ["", "tasks", "runs", "mean ratio", "less that of `sb3`", "IQM", "chance to beat `sb3`"]
    return table(head, rows)


def against(results: Results, stage: str, arm: str, tasks: Sequence[str]) -> str:
    """An arm beside each other one of the stage, on the scale of 0 for random actions and 1 for the other's mean.

    A task counts once both have ``FEWEST`` runs of it, and an arm once there are ``FEWEST_TASKS`` such tasks.
    """
    rows = []
    for other in results.arms(stage):
        ours = results.normalised(stage, arm, tasks, other)
        ours, theirs = with_spread(ours, results.normalised(stage, other, list(ours), other))
        if other == arm or len(ours) < FEWEST_TASKS:
            continue
        ratio, middle = difference(ours, theirs, mean), difference(ours, theirs, interquartile_mean)
        least = min(ours, key=lambda task: float(ours[task].mean()))
        worst = difference({least: ours[least]}, {least: theirs[least]}, mean)
        rows.append(
            [
                *(f"`{other}`", f"{len(ours)}", f"{sum(map(len, ours.values()))}"),
                *map(signed, (ratio, middle)),
                f"{probability_of_improvement(ours, theirs):.2f}",
                f"{least}: {signed(worst)}",
            ]
        )
    if not rows:
        return f"No arm has {FEWEST} runs of {FEWEST_TASKS} tasks that it shares with `{arm}` yet."
    head = [
        "beside",
        "tasks",
        "runs",
        "mean ratio less 1",
        "IQM less theirs",
        "chance to beat it",
        "lowest task, less 1",
    ]
    return table(head, rows)


def seconds(results: Results, stage: str, arms: Sequence[str], tasks: Sequence[str]) -> str:
    """Core-seconds until a run first had the return that the reference ends with, medians over runs that got there."""
    rows, comparable = [], results.of_one_processor(stage, arms, tasks)
    for arm in arms:
        cells = []
        for task in tasks:
            runs, theirs = comparable[arm, task], results.of(stage, REFERENCE, task)
            level = float(np.mean([mean_return(record, "last_100") for record in theirs])) if theirs else np.nan
            found = [second for record in runs if (second := seconds_to_reach(record, level)) is not None]
            whole = f"{np.median(found):.0f} s ({len(found)} of {len(runs)})" if found else f"(0 of {len(runs)})"
            cells.append(whole if runs and theirs else NOTHING)
        rows.append([f"`{arm}`", *cells])
    return arms_by_tasks(tasks, rows)


def knobs(results: Results, stage: str, bases: Mapping[str, str], tasks: Sequence[str]) -> str:
    """What one change does (arm -> the arm it is changed from), where random actions are 0 and the base's mean is 1."""
    rows = []
    for arm, base in bases.items():
        ours = results.normalised(stage, arm, tasks, base)
        if not ours:
            continue
        theirs = results.normalised(stage, base, list(ours), base)
        found = difference(ours, theirs, mean)
        runs = sum(map(len, ours.values()))
        change = arm.removeprefix(f"{base}, ")
        rows.append([f"`{change}`", f"`{base}`", f"{len(ours)}", f"{runs}", effect(found, ours, theirs)])
    if not rows:
        return "Not run yet."
    return table(["one change", "from", "tasks", "runs", "effect"], rows)


def progress(results: Results) -> str:
    """How much of each stage is recorded."""
    rows = []
    for name, stage in PLAN.items():
        planned, found = len(stage.orders()), results.by_stage.get(name, [])
        left = len(stage.missing(found))
        rows.append([f"`{name}`", f"{len(found)}", f"{left} of {planned}", f"{results.core_hours(name):.1f}"])
    return table(["stage", "recorded", "planned and not run", "core-hours"], rows)


def entries(results: Results, tasks: Iterable[str]) -> str:
    """The settings of ``ppox.yml``: final model, mean action and sampled ones, and what random actions get.

    In the last column rl_zoo3's settings, the mean action again, where the entry has others.
    """
    rows = []
    for task in tasks:
        runs = results.fresh("ppox.yml", task)
        cells = [cell(results.scores_of(runs, kind)) for kind in ("deterministic", "sampled", "last_100")]
        least = number(results.random[task]) if task in results.random else NOTHING
        steps = f"{runs[0]['settings']['steps']:,}" if runs else NOTHING
        others = ARMS["zoo"].settings(task) != ARMS["ppox.yml"].settings(task)
        zoo = cell(results.scores_of(results.fresh("zoo", task))) if others else NOTHING
        rows.append([task, steps, *cells, least, zoo])
    return table(
        ["", "steps", "mean action", "sampled actions", "last 100 of training", "random actions", "`zoo`"], rows
    )
