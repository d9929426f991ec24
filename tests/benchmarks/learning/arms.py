"""All arms by name."""

from __future__ import annotations

from tests.benchmarks.learning.arm import Arm
from tests.benchmarks.learning.baselines import BASELINES
from tests.benchmarks.learning.entries import ENTRIES
from tests.benchmarks.learning.kl_bound import KL_BOUND
from tests.benchmarks.learning.recipes import RECIPE_ARMS
from tests.benchmarks.learning.screen import SCREEN
from tests.benchmarks.learning.short import SHORT
from tests.benchmarks.learning.table_one import TABLE_ONE

SUITE = tuple(
    f"{name}-v5"
    for name in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid", "Swimmer", "Reacher", "InvertedDoublePendulum")
)
ARMS: dict[str, Arm] = {**BASELINES, **SCREEN, **RECIPE_ARMS, **ENTRIES, **SHORT, **TABLE_ONE, **KL_BOUND}
