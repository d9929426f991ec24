"""The running statistics of ``VecNormalize``, updated with one sum: the bits and types of ``RunningMeanStd.update``."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_ppo_ext.rollout.vec_normalize import update_statistics


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int64"])
@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (8, 17), (200, 3), (4, 6, 6, 3), (7,), (1,)])
def test_statistics_are_those_of_update(dtype: str, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    mine, theirs = RunningMeanStd(shape=shape[1:]), RunningMeanStd(shape=shape[1:])
    for number in range(50):
        batch = (100 * random.random(shape)).astype(dtype)
        if number == 40 and np.issubdtype(batch.dtype, np.floating):
            batch.flat[0] = np.inf
        with np.errstate(all="ignore"):
            update_statistics(mine, batch)
            theirs.update(batch)
        for name, value in vars(theirs).items():
            assert type(getattr(mine, name)) is type(value)
            np.testing.assert_array_equal(getattr(mine, name), value, err_msg=name)


@pytest.mark.parametrize("name", ["mean", "var"])
def test_statistics_of_another_type_stay_those_of_update(name: str) -> None:
    mine, theirs = RunningMeanStd(shape=(3,)), RunningMeanStd(shape=(3,))
    for statistics in (mine, theirs):
        setattr(statistics, name, getattr(statistics, name).astype(np.float32))
        statistics.count = np.float64(0.1)
    batch = np.random.default_rng(0).random((4, 3))
    update_statistics(mine, batch)
    theirs.update(batch)
    for key, value in vars(theirs).items():
        assert getattr(mine, key).dtype == value.dtype
        np.testing.assert_array_equal(getattr(mine, key), value)
