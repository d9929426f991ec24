"""The best scores of a PPO at about 1M steps that others have published, beside what was measured here."""

from __future__ import annotations

from typing import NamedTuple

from tests.benchmarks.learning.plan import OLDER, PLAN
from tests.benchmarks.learning.results import Results
from tests.benchmarks.learning.tables import cell, number, table


class Published(NamedTuple):
    """A score, who has it, and on which version of the task."""

    score: float
    by: str
    version: str


# Tianshou: examples/mujoco/README.md at 6426a397 (2021), the best of its evaluations up to 1M steps of a run of 3M,
# sampled actions, mean of ten seeds. rl_zoo3: benchmark.md, the final model of one run. KLip-PPO: 7ee1c56, the last
# tenth of the training, mean of five seeds, the best of its settings.
BEST = {
    "HalfCheetah-v5": Published(5819, "rl_zoo3", "v3"),
    "Hopper-v5": Published(2616, "KLip-PPO", "v4"),
    "Walker2d-v5": Published(3995, "KLip-PPO", "v4"),
    "Ant-v5": Published(3258, "Tianshou", "v3"),
    "Humanoid-v5": Published(787, "Tianshou", "v3"),
    "Swimmer-v5": Published(282, "rl_zoo3", "v3"),
    "Reacher-v5": Published(-4.1, "Tianshou", "v2"),
    "InvertedDoublePendulum-v5": Published(9231, "Tianshou", "v2"),
}


def best_published(results: Results) -> str:
    """For each task the best published score, and what the entry of ppox.yml and the recipe have with fresh seeds."""
    rows = []
    for task, (score, by, version) in BEST.items():
        ours = (cell(results.scores_of(results.fresh(arm, task))) for arm in ("ppox.yml", "recipe"))
        rows.append([task, number(score), by, version, *ours])
    return table(["", "published", "by", "task there", "entry of `ppox.yml`", "`recipe`"], rows)


def of_versions(results: Results) -> str:
    """What Tianshou's settings and the recipe get in the version of a task that was published on, and in v5."""
    rows = []
    for arm in PLAN["older"].arms:
        found = [results.scores("older", arm, task) for task in OLDER]
        found += [results.scores("confirm", arm, newest(task)) for task in OLDER]
        rows.append([f"`{arm}`", *map(cell, found)])
    return table(["", *OLDER, *map(newest, OLDER)], rows)


def newest(task: str) -> str:
    """The task in its v5."""
    return f"{task.partition('-')[0]}-v5"
