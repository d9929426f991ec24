"""Statistics of ``VecNormalize`` that take in the environments of all shards, here in one process."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.distributed.processes import ALONE
from sb3_ppo_ext.distributed.shards import Shards
from sb3_ppo_ext.rollout.shared_statistics import FOLDED, SharedStatistics, statistics_of
from tests.distributed.jobs import case_model, numbers_of

SHARDS = Shards(2, range(2), seed=0)


def collected(batches: np.ndarray, count: float = 1e9) -> SharedStatistics:
    """What is merged once, of ``batches`` [T, N, D], into statistics that have seen ``count`` rows."""
    statistics = RunningMeanStd(shape=batches.shape[2:])
    statistics.count = count
    shared = SharedStatistics(statistics, SHARDS, ALONE, every_step=False)
    for batch in batches:
        shared.update(batch)
    assert shared.count == count  # frozen
    shared.merge()
    return shared


def test_what_shards_collect_is_pooled_with_the_prior_once() -> None:
    batches = np.random.default_rng(0).normal(3.0, 2.0, (2 * FOLDED + 10, 4, 3))
    prior = 2000.0
    shared = collected(batches, prior)
    rows = batches.reshape(-1, 3)
    # The prior is ``prior`` rows of mean 0 and variance 1, hence of sum 0 and of sum of squares ``prior``.
    count = prior + len(rows)
    mean = rows.sum(axis=0) / count
    var = (prior + (rows**2).sum(axis=0)) / count - mean**2
    np.testing.assert_allclose(shared.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(shared.var, var, rtol=1e-12)
    assert shared.count == count


def test_they_take_in_what_is_as_much_as_they_have_seen() -> None:
    shared = SharedStatistics(RunningMeanStd(shape=()), SHARDS, ALONE, every_step=False)
    counts = []
    for _ in range(9):
        shared.update(np.ones(4))
        counts.append(round(shared.count))
    assert counts == [4, 8, 8, 16, 16, 16, 16, 32, 32]


def test_collecting_goes_on_from_its_state() -> None:
    batches = np.random.default_rng(0).normal(size=(FOLDED + 20, 4, 3))
    whole = collected(batches)
    first, second = (SharedStatistics(whole, SHARDS, ALONE, every_step=False) for _ in range(2))
    first.mean, first.var, first.count = np.zeros(3), np.ones(3), 1e9
    second.mean, second.var, second.count = np.zeros(3), np.ones(3), 1e9
    for batch in batches[: FOLDED + 5]:
        first.update(batch)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    for batch in batches[FOLDED + 5 :]:
        second.update(batch)
    second.merge()
    assert (second.mean == whole.mean).all() and (second.var == whole.var).all()


def test_files_and_evaluation_environments_have_plain_statistics() -> None:
    evaluation = VecNormalize(case_model("box").env, training=False)  # type: ignore[arg-type]  # an environment
    model = case_model("box", normalize={})
    files, copies = [], []

    def callback(arguments: dict[str, object], _: object) -> bool:
        env = model.env
        assert isinstance(env, VecNormalize) and isinstance(env.ret_rms, SharedStatistics)
        files.append(pickle.loads(pickle.dumps(env)))
        sync_envs_normalization(env, evaluation)
        copies.append(copy.deepcopy(evaluation.obs_rms))
        return True

    model.learn(64, callback=callback)
    assert all(type(rms) is RunningMeanStd for env in (*files, model.env) for _, rms in statistics_of(env))
    assert not any(isinstance(rms, SharedStatistics) for rms in copies)
    np.testing.assert_array_equal(numbers_of(files[-1])[:-3], numbers_of(evaluation)[:-3])


def test_statistics_that_are_not_trained_stay() -> None:
    model = case_model("box", normalize={"training": False})
    before = numbers_of(model.env).tobytes()  # type: ignore[arg-type]  # a VecNormalize
    model.learn(128)
    assert numbers_of(model.env).tobytes() == before  # type: ignore[arg-type]


def test_without_shards_they_are_those_of_stable_baselines3() -> None:
    with pytest.raises(ValueError, match="vec_normalize_sync='always'"):
        PPOX("MlpPolicy", "CartPole-v1", vec_normalize_sync="always")
