"""Stands in for the package reasoning-gym, which the tests do not install."""

from __future__ import annotations

import random
import sys
from types import ModuleType
from typing import Any

import pytest

SOME_FAIL, ALL_FAIL = 10**6, 10**6 + 1  # largest terms of tasks that fail to make a question


class Sums:
    """As a data set of reasoning-gym: item i of the seed s is drawn from Random(s + i)."""

    def __init__(self, seed: int, size: int, largest: int = 10**9) -> None:
        if largest < 1:
            raise AssertionError("largest must be positive")
        self.seed, self.size, self.largest = seed, size, largest

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = random.Random(self.seed + index)
        terms = generator.randint(1, self.largest), generator.randint(1, self.largest)
        if (self.largest == SOME_FAIL and index % 2) or self.largest == ALL_FAIL:
            raise RuntimeError("no question")
        return {"question": f"{terms[0]} + {terms[1]} =", "answer": str(sum(terms)), "metadata": {"terms": terms}}

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return 1.0 if int(answer) == int(entry["answer"]) else 0.25  # raises ValueError for junk


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the tasks "sums" and "more_sums" in the place of the package."""
    gym, factory = ModuleType("reasoning_gym"), ModuleType("reasoning_gym.factory")
    tasks = {"sums": Sums, "more_sums": Sums}
    vars(gym)["create_dataset"] = lambda name, **options: tasks[name](**options)
    vars(factory)["DATASETS"] = tasks
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
