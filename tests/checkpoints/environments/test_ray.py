"""``RayVecEnv`` goes on from a checkpoint, and from there in another worker where one is lost."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ppo_ext.checkpoints.environments import restore_environments
from sb3_ppo_ext.vec_env import RayVecEnv, RayWorkerWarning
from tests.checkpoints.environments.continuing import continued, goes_on_exactly, interrupted, plain
from tests.checkpoints.environments.kinds import Counting, GoesOnOverResets, MadeAnewInReset
from tests.vec_env.remote.in_process import InProcessRay


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> InProcessRay:
    """Workers that are objects of this process."""
    found = InProcessRay()
    monkeypatch.setattr("sb3_ppo_ext.vec_env.remote.ray_vec_env.imported_ray", lambda: found)
    return found


def counting(n_envs: int = 3) -> VecNormalize:
    return VecNormalize(RayVecEnv([Counting] * n_envs, envs_per_worker=2))


def test_environments_in_workers_go_on(ray: InProcessRay) -> None:
    assert goes_on_exactly(counting)


@pytest.mark.parametrize(("kind", "exact"), [(MadeAnewInReset, True), (GoesOnOverResets, False)])
def test_the_ladder_is_that_of_other_workers(ray: InProcessRay, kind: type, exact: bool) -> None:
    make = partial(RayVecEnv, [kind] * 2, envs_per_worker=1)
    restored, equal = continued(make, interrupted(make))
    assert restored.new_episodes is not exact and equal is exact


def poles() -> VecNormalize:
    """Environments whose episodes can be repeated."""
    return VecNormalize(RayVecEnv("CartPole-v1", 3, envs_per_worker=2))


def test_a_worker_lost_after_the_checkpoint_changes_no_number(ray: InProcessRay) -> None:
    run = interrupted(poles, after=60)
    env = poles()
    assert restore_environments(env, pickle.loads(run.state)) == []
    for step, (action, expected) in enumerate(zip(run.actions, run.results, strict=True)):
        if step in (0, 3, 40):  # before an episode has ended since the checkpoint, and later
            left = iter(["dead"])
            ray.fate = lambda actor, method, left=left: next(left, "") if method == "step" else ""  # type: ignore[misc]
            with pytest.warns(RayWorkerWarning, match="went on as they were"):
                assert plain(env.step(action)) == expected
        else:
            assert plain(env.step(action)) == expected


def test_a_worker_lost_between_checkpoints_leaves_the_later_one_exact(ray: InProcessRay) -> None:
    env = poles()
    restored = interrupted(poles, before=10, after=1)
    assert restore_environments(env, pickle.loads(restored.state)) == []
    ray.fate = lambda actor, method: "dead" if method == "step" and actor < len(ray.actors) - 2 else ""
    with pytest.warns(RayWorkerWarning, match="went on as they were"):
        env.step(np.zeros(3, int))
    ray.fate = lambda actor, method: ""
    run = interrupted(lambda: env, prepare=False)
    assert continued(poles, run)[1]
