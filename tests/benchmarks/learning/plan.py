"""What is to be run: one stage for each file of records, so that the page can name what has not been run.

Seeds from 1000 on are fresh: no choice was made by them. The screen and the table of the PPO paper use others. The
recipe was changed after seeds up to 1008 had been seen, and has others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.learning import kl_bound, records
from tests.benchmarks.learning.arm import Arm
from tests.benchmarks.learning.arms import ARMS, SUITE
from tests.benchmarks.learning.entries import BOX2D, CLASSIC
from tests.benchmarks.learning.kl_bound import KL_BOUND
from tests.benchmarks.learning.screen import (
    HALF_THE_TARGET,
    LOWER,
    ON_ANT,
    ON_REACHER,
    SCREEN,
    STAGGERED,
    base_of,
)
from tests.benchmarks.learning.short import SHORT, ZOO
from tests.benchmarks.learning.table_one import TABLE_ONE, TABLE_ONE_TASKS

LOCOMOTION = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")
NO_LEGS = ("Swimmer-v5", "Reacher-v5", "InvertedDoublePendulum-v5")
TWO, AS_THEY_ARE = f"{STAGGERED}, two environments", f"{STAGGERED}, observations as they are"
# Larger networks are for tasks with legs alone.
WITHOUT_LEGS = (
    *("rate by KL", "falling"),
    *(arm for arm in SCREEN if base_of(arm) == "rate by KL" and not arm.endswith("256")),
    *(TWO, AS_THEY_ARE, *ON_REACHER, HALF_THE_TARGET),
)
ONCE = (*ON_REACHER, HALF_THE_TARGET)
# Between these more seeds decide how many environments, and whether observations are normalised.
DECIDED = (STAGGERED, "rate by KL, one environment", TWO, AS_THEY_ARE)
OF_SB3 = "sb3, eight environments"  # beside "sb3" on the same fresh seeds
WITH_PENALTY = f"{OF_SB3}, penalty"
ANT, REACHER, HUMANOID = ("Ant-v5",), ("Reacher-v5",), ("Humanoid-v5",)
# The screen is of four tasks; how far the policy may move has been asked of Humanoid too.
SCREENED = ("sb3", "cleanrl", "tianshou", *(arm for arm in SCREEN if arm not in ON_REACHER))
SCREENED_ON = {
    **dict.fromkeys(SCREENED, LOCOMOTION),
    **dict.fromkeys(ON_ANT, ANT),
    **dict.fromkeys((LOWER, HALF_THE_TARGET), (*LOCOMOTION, *HUMANOID)),
}
OF_ITS_OWN = (
    "Swimmer-v5",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Reacher-v5",
)  # entries that are no arm of the comparison
CONFIRMED = ("recipe", "sb3", "zoo", "cleanrl", "tianshou")  # what decides: ten seeds each
OTHERS = ("trpo", "a2c", "sbx")  # other algorithms, which take several times as long
EARLIER = (STAGGERED, "rate by KL")  # what the recipe was before, with the seeds it was run with then
OLDER = ("Ant-v4",)  # the version of published scores
Orders = list[dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """Every arm on every task with every seed."""

    arms: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: range
    seeds_of: Mapping[str, range] = field(default_factory=dict)  # of arms that have others
    tasks_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of arms that have some of them

    def orders(self, steps: int | None = None) -> Orders:
        """All runs, seed by seed, so that an unfinished stage has every arm and task with the first seeds."""
        seeds = {arm: self.seeds_of.get(arm, self.seeds) for arm in self.arms}
        return [
            order_of(ARMS[arm], arm, task, seed, steps)
            for seed in sorted(set().union(*seeds.values()))
            for task in self.tasks
            for arm in self.arms
            if seed in seeds[arm] and task in self.tasks_of.get(arm, self.tasks)
        ]

    def missing(self, found: Iterable[Mapping[str, Any]]) -> Orders:
        """The runs that are not among the records."""
        known = {records.identity(record) for record in found}
        return [order for order in self.orders() if records.identity(order) not in known]


def order_of(arm: Arm, name: str, task: str, seed: int, steps: int | None = None) -> dict[str, Any]:
    """One run: what ``runs.run`` takes and a record repeats."""
    settings = arm.settings(task)
    if steps is not None:
        settings["steps"] = steps
    return {"task": task, "arm": name, "seed": seed, "settings": settings}


PLAN = {
    "random": Stage(("random",), (*SUITE, "InvertedPendulum-v5", *CLASSIC, *BOX2D, *OLDER), range(1)),
    "screen": Stage(SCREENED, (*LOCOMOTION, *HUMANOID), range(2), tasks_of=SCREENED_ON),
    "no_legs": Stage(
        (*WITHOUT_LEGS, OF_SB3, WITH_PENALTY),
        NO_LEGS,
        range(2),
        {**dict.fromkeys(DECIDED, range(5)), **dict.fromkeys(ONCE, range(1)), OF_SB3: range(1000, 1003)},
        dict.fromkeys((*ON_REACHER, WITH_PENALTY), REACHER),
    ),
    "confirm": Stage(
        (*CONFIRMED, *OTHERS),
        SUITE,
        range(1000, 1010),
        {"recipe": range(1009, 1019), **dict.fromkeys(OTHERS, range(1000, 1003))},
    ),
    "native": Stage(("sb3-native",), SUITE, range(1000, 1001)),
    "entries": Stage(("ppox.yml",), (*CLASSIC, *BOX2D, *OF_ITS_OWN), range(1000, 1005)),
    "short": Stage(tuple(SHORT), tuple(ZOO), range(10)),
    "older": Stage(("recipe", "tianshou"), OLDER, range(1000, 1003)),
    "table_one": Stage(tuple(TABLE_ONE), TABLE_ONE_TASKS, range(3)),
    "kl_bound": Stage(tuple(KL_BOUND), kl_bound.TASKS, range(5)),
}
