"""Table 1 of the PPO paper beside ours: the mean on the paper's scale, and each task's own returns."""

from __future__ import annotations

import re

from tests.benchmarks.learning.intervals import Scores, difference, interval, mean, normalised
from tests.benchmarks.learning.plan import PLAN
from tests.benchmarks.learning.results import Results
from tests.benchmarks.learning.table_one import NAMES, PAPER
from tests.benchmarks.learning.tables import FEWEST, NOTHING, between, effect, fewest, number, table

STAGE, TASKS = "table_one", PLAN["table_one"].tasks
BESIDE = "clip 0.2"  # the paper's best row, which is PPO to everybody


def returns(results: Results) -> dict[str, Scores]:
    """Each row that has a run of every task: the last 100 episodes of its trainings, by task."""
    found = {
        name: {task: results.scores(STAGE, arm, task, "last_100") for task in TASKS} for name, arm in NAMES.items()
    }
    return {
        name: runs for name, runs in found.items() if fewest(runs) and all(task in results.random for task in TASKS)
    }


def on_the_papers_scale(results: Results) -> dict[str, Scores]:
    """Random actions have 0 and the best of the paper's rows 1: rows that are not the paper's do not move the scale."""
    rows = returns(results)
    best = {
        task: max((float(runs[task].mean()) for name, runs in rows.items() if name in PAPER), default=float("nan"))
        for task in TASKS
    }
    return {
        name: {task: normalised(runs[task], results.random[task], best[task]) for task in TASKS}
        for name, runs in rows.items()
    }


def table_one(results: Results) -> str:
    """Every row of the table, the paper's score and ours, and ours less that of the usual clip range."""
    scores, lines = on_the_papers_scale(results), []
    for name in NAMES:
        theirs = f"{PAPER[name]:.2f}" if name in PAPER else NOTHING
        lines.append([name, theirs, *cells(name, scores)])
    return table(["", "paper (v1)", "here (v5)", "seeds", f"less {BESIDE}"], lines)


def cells(name: str, scores: dict[str, Scores]) -> list[str]:
    """Our score of a row, its number of seeds, and the difference; with intervals from ``FEWEST`` seeds on."""
    if name not in scores:
        return ["not run", NOTHING, NOTHING]
    ours, theirs, seeds = scores[name], scores.get(BESIDE), fewest(scores[name])
    found = interval(ours, mean)
    score = f"{found.value:.2f} {between(found)}" if seeds >= FEWEST else f"{found.value:.2f}"
    if theirs is None or name == BESIDE:
        return [score, str(seeds), NOTHING]
    return [score, str(seeds), effect(difference(ours, theirs, mean), ours, theirs)]


def by_task(results: Results) -> str:
    """The mean returns of the rows that have been run, beside those of random actions."""
    rows = returns(results)
    if not rows:
        return "Not run yet."
    lines = [[name, *(number(float(runs[task].mean())) for task in TASKS)] for name, runs in rows.items()]
    random = ["random actions", *(number(results.random[task]) for task in TASKS)]
    return table(["", *map(in_words, TASKS)], [*lines, random])


def in_words(task: str) -> str:
    """The name of a task with spaces between its words, where a narrow column can break it."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", task.removesuffix("-v5"))
