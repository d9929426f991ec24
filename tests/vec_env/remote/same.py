"""Steps of two vector environments that have to be equal in every number, type and key."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right) or (isinstance(left, dict) and isinstance(right, dict)), (left, right)
    if isinstance(left, dict):  # DummyVecEnv has ordered ones, SubprocVecEnv has not
        assert left.keys() == right.keys()
        for key in left:
            if key != "t":  # seconds of an episode
                assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for first, second in zip(left, right, strict=True):
            assert_same(first, second)
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    else:
        assert left == right


def step_both(left: VecEnv, right: VecEnv, actions: np.ndarray[Any, Any]) -> None:
    assert_same(left.step(actions.copy()), right.step(actions.copy()))
    assert_same(left.reset_infos, right.reset_infos)
