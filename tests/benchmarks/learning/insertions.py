"""What the records put into files that are written by hand: a line for each entry of ppox.yml, a table in README.md."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.learning.arms import SUITE
from tests.benchmarks.learning.results import Results
from tests.benchmarks.learning.tables import cell, number, table

ENTRY = re.compile(r"^(?P<head>(?P<task>[\w-]+-v\d+):.*\n)(?P<comments>(?:  #.*\n)*)", re.MULTILINE)
MEASURED = re.compile(r"^  # Measured: .*\n", re.MULTILINE)
TABLE = re.compile(r"(?<=<!-- learning -->\n).*?(?=<!-- /learning -->)", re.DOTALL)
KINDS = ("deterministic", "sampled")
OF_README = ("sb3", "zoo", "cleanrl", "tianshou", "recipe")


def measured(results: Results, task: str) -> str:
    """The line of an entry: what its present settings reached, "" where they have no runs."""
    runs = results.fresh("ppox.yml", task)
    if not runs:
        return ""
    mean, sampled = (of_seeds(results.scores_of(runs, kind)) for kind in KINDS)
    steps = runs[0]["settings"]["steps"]
    return f"  # Measured: {mean} with the mean action and {sampled} with sampled ones after {steps:,} steps.\n"


def of_seeds(scores: NDArray[np.float64]) -> str:
    """A mean and the number of seeds."""
    return f"{number(float(np.mean(scores)))} ({len(scores)} seed{'s' * (len(scores) > 1)})"


def entries(text: str, results: Results) -> str:
    """The text of ppox.yml with the line of each entry."""
    return ENTRY.sub(
        lambda match: match["head"] + measured(results, match["task"]) + MEASURED.sub("", match["comments"]), text
    )


def readme(text: str, results: Results) -> str:
    """The text of README.md with its table: every task of the suite that the recipe and the defaults have runs of."""
    rows = []
    for task in SUITE:
        scores = {arm: results.scores("confirm", arm, task) for arm in OF_README}
        if len(scores["recipe"]) and len(scores["sb3"]):
            rows.append([task, *map(cell, scores.values())])
    return TABLE.sub(lambda _: table(["", *(f"`{arm}`" for arm in OF_README)], rows) + "\n", text)
