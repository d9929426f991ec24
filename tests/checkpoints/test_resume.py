"""A run that is stopped and resumed ends as one that never was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from sb3_ppo_ext import PPOX, AdaptiveKL
from sb3_ppo_ext.saving import random_state, restore_random_state
from tests.checkpoints.runs import SETTINGS, Steps, assert_same, trained
from tests.environments import walk

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")  # targets out of reach

TOTAL = 96
STOPS = [17, 33, 50, 70]


def test_a_seeded_run_stopped_after_every_update_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    def make() -> PPOX:
        rate: Any = AdaptiveKL(1e-3, 1e-3, every="minibatch")
        return PPOX("MlpPolicy", walk(), seed=1, learning_rate=rate, ent_coef="linear:0.1:0", **SETTINGS)

    unbroken, theirs = trained(make, walk, tmp_path / "a", total=TOTAL, stops=[], callbacks=steps)
    broken, mine = trained(make, walk, tmp_path / "b", total=TOTAL, stops=STOPS, callbacks=steps)
    assert_same(broken, unbroken)
    assert rewards(mine) == rewards(theirs)


def test_an_unseeded_run_does_too(tmp_path: Path) -> None:
    begun = random_state(0)

    def make() -> PPOX:
        restore_random_state(begun)
        env = walk()
        env.reset(seed=7)  # where another would ask the system for a seed
        return PPOX("MlpPolicy", env, **SETTINGS)

    unbroken, theirs = trained(make, walk, tmp_path / "a", total=TOTAL, stops=[], callbacks=steps)
    broken, mine = trained(make, walk, tmp_path / "b", total=TOTAL, stops=STOPS, callbacks=steps)
    assert_same(broken, unbroken)
    assert rewards(mine) == rewards(theirs)


def steps() -> list[BaseCallback]:
    return [Steps()]


def rewards(callbacks: CallbackList) -> list[list[float]]:
    found = callbacks.callbacks[0]
    assert isinstance(found, Steps)
    return found.rewards
