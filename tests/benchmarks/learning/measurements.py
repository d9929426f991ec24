"""The tables of what runs hold besides their scores: the KL of updates, and what an average of parameters gains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tests.benchmarks.learning.intervals import interval, mean
from tests.benchmarks.learning.kl_bound import BOUND, TASKS
from tests.benchmarks.learning.results import Results, mean_return
from tests.benchmarks.learning.tables import NOTHING, arms_by_tasks, effect, table

KINDS = ("deterministic", "averaged")  # with the last parameters, and with the average of them


def averaged(results: Results, stage: str, arms: Iterable[str], tasks: Sequence[str]) -> str:
    """What averaged parameters gain over the last ones of the same runs, of which a record holds both.

    In units of the mean of the last parameters over random actions.
    """
    rows = []
    for arm in arms:
        gains = {}
        for task in tasks:
            runs = [record for record in results.of(stage, arm, task) if "averaged" in record]
            if runs:
                last, mean_of = (np.array([mean_return(run, kind) for run in runs]) for kind in KINDS)
                gains[task] = (mean_of - last) / (last.mean() - results.random[task])
        if gains:
            cells = [f"{gains[task].mean():+.2f} ({len(gains[task])})" if task in gains else NOTHING for task in tasks]
            rows.append([f"`{arm}`", *cells, effect(interval(gains, mean), gains)])
    return arms_by_tasks([*tasks, "all"], rows) if rows else "Not run yet."


def updates(results: Results, stage: str, arms: Iterable[str], tasks: Sequence[str]) -> str:
    """The mean of ``approx_kl`` over all updates of all runs; A2C and TRPO have none."""
    rows = []
    for arm in arms:
        runs = [[run["updates"] for run in results.of(stage, arm, task)] for task in tasks]
        found = [[means["approx_kl"] for means in of_task if "approx_kl" in means] for of_task in runs]
        rows.append([f"`{arm}`", *(f"{np.mean(kls):.3f}" if kls else NOTHING for kls in found)])
    return arms_by_tasks(tasks, rows)


def bounds(results: Results) -> str:
    """The KL that the multiplier held, over the bound."""
    rows = []
    for arm in results.arms("kl_bound"):
        for task in TASKS:
            held = [float(record["updates"]["kl_held"]) for record in results.of("kl_bound", arm, task)]
            if held:
                every = ", ".join(f"{kl / BOUND:.2f}" for kl in held)
                rows.append([f"`{arm}`", task, f"{np.mean(held) / BOUND:.2f}", every])
    if not rows:
        return "Not run yet."
    return table(["", "task", f"KL / bound of {BOUND:g} nats, mean", "each seed"], rows)
