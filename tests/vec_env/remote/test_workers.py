"""Real workers: processes that are killed, stopped or fail, in a small Ray cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.vec_env import RayVecEnv, RayWorkerWarning
from tests.vec_env.remote.same import assert_same, step_both
from tests.vec_env.remote.tasks import Drunkard, Mortal, process_of

CHANCE = np.random.default_rng(1)


def actions() -> np.ndarray[Any, Any]:
    return CHANCE.uniform(-1, 1, (4, 2)).astype(np.float32)


def factory(folder: Path) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: Monitor(Mortal(Drunkard(), folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in it end workers."""
    return tmp_path_factory.mktemp("deaths")


@pytest.fixture(scope="module")
def both(cluster: Any, folder: Path) -> Iterator[tuple[RayVecEnv, DummyVecEnv]]:
    """Four environments in two workers, and the same four in this process; between tests they are reset."""
    make = [factory(folder)] * 4
    ours, theirs = RayVecEnv(make, max_replacements=100), DummyVecEnv(make)
    yield ours, theirs
    ours.close()


@pytest.fixture
def reset(both: tuple[RayVecEnv, DummyVecEnv]) -> tuple[RayVecEnv, DummyVecEnv]:
    """Both at the beginning of episodes."""
    for env in both:
        env.seed(5)
    assert_same(both[0].reset(), both[1].reset())
    return both


def processes(env: RayVecEnv) -> list[int]:
    found = env.apply(process_of, repeated="never")
    assert found[0] == found[1] != found[2] == found[3]
    return found[::2]


def test_steps_are_those_of_dummy_vec_env_in_arrays_of_its_own(reset: tuple[RayVecEnv, DummyVecEnv]) -> None:
    ours, theirs = reset
    for _ in range(20):
        taken = actions()
        left: Any = ours.step(taken.copy())
        assert_same(left, theirs.step(taken.copy()))
        left[0][:], left[1][:], left[2][:] = 0, 0, False  # as wrappers may
        left[3][0]["place"][:] = 0
        if "terminal_observation" in left[3][0]:
            left[3][0]["terminal_observation"][:] = 0
    ours.reset_infos[0]["first"][:] = 0


def test_what_stands_in_environments_is_read_and_set_by_index(reset: tuple[RayVecEnv, DummyVecEnv]) -> None:
    ours, theirs = reset
    for env in (ours, theirs):
        env.set_attr("name", "last", indices=-1)
        assert env.env_method("set_stride", 0.5, indices=[2, 0]) == [1.0, 1.0]
        assert env.get_attr("stride") == [0.5, 1.0, 0.5, 1.0]
        assert env.get_attr("name", indices=3) == ["last"] and not env.has_attr("name")
        assert env.env_is_wrapped(Mortal) == [True] * 4
        assert env.env_is_wrapped(gym.wrappers.TimeLimit, indices=[0, 1]) == [False, False]
        env.set_options([{"row": row} for row in range(4)])
        env.env_method("set_stride", 1.0)
    assert_same(ours.reset(), theirs.reset())
    assert ours.get_attr("options") == [{"row": row} for row in range(4)]
    ours.step_async(actions())
    assert len(ours.get_attr("left")) == 4  # of after the step
    assert len(ours.step_wait()[0]) == 4


def test_killed_workers_change_no_number(reset: tuple[RayVecEnv, DummyVecEnv]) -> None:
    ours, theirs = reset
    for step in range(12):
        if step == 4:
            for process in processes(ours):
                os.kill(process, signal.SIGKILL)
            with pytest.warns(RayWorkerWarning, match="died.*went on as they were"):
                step_both(ours, theirs, actions())
        step_both(ours, theirs, actions())


def test_a_stopped_worker_is_replaced_after_the_timeout(
    reset: tuple[RayVecEnv, DummyVecEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = reset
    crew = ours._crew
    step_both(ours, theirs, actions())
    os.kill(stopped := processes(ours)[0], signal.SIGSTOP)
    with monkeypatch.context() as patch, pytest.warns(RayWorkerWarning, match="worker 0 .* not answer within .*=2 s"):
        patch.setattr(crew, "settings", replace(crew.settings, step_timeout=2.0))
        step_both(ours, theirs, actions())
    for _ in range(5):
        step_both(ours, theirs, actions())
    wait_for_end(stopped)


def test_a_death_in_the_midst_of_a_reset_changes_no_number(reset: tuple[RayVecEnv, DummyVecEnv], folder: Path) -> None:
    ours, theirs = reset
    step_both(ours, theirs, actions())
    (folder / "reset").touch()  # ends the first worker that comes to it
    with pytest.warns(RayWorkerWarning, match="died"):
        first = ours.reset()
    assert_same(first, theirs.reset())
    for _ in range(8):
        step_both(ours, theirs, actions())


def test_what_an_environment_raises_is_raised(reset: tuple[RayVecEnv, DummyVecEnv]) -> None:
    ours, _ = reset
    ours.env_method("set_wrapper_attr", "failing", ZeroDivisionError, indices=2)
    with pytest.raises(
        ZeroDivisionError, match=r"worker 1 \(environments 2 to 3\): environment 2 raised ZeroDiv.*on p"
    ):
        ours.step(actions())
    ours.env_method("set_wrapper_attr", "failing", None, indices=2)


def test_training_equals_that_over_dummy_vec_env(both: tuple[RayVecEnv, DummyVecEnv]) -> None:
    parameters, statistics = [], []
    env: VecEnv
    for env in both:
        normalized: Any = VecNormalize(env)
        evaluation = EvalCallback(VecNormalize(env, training=False), n_eval_episodes=2, eval_freq=16, verbose=0)
        model = PPOX("MlpPolicy", normalized, n_steps=16, batch_size=32, n_epochs=1, seed=2, compile=False)
        model.learn(128, callback=evaluation)
        first: Any = env.reset()
        assert model.predict(first)[0].shape == (4, 2)
        parameters.append(torch.nn.utils.parameters_to_vector(model.policy.parameters()))
        statistics.append(normalized.obs_rms.mean)
    torch.testing.assert_close(*parameters, rtol=0, atol=0)
    np.testing.assert_array_equal(*statistics)


def test_a_worker_that_dies_in_construction_is_started_again_and_close_leaves_none(
    cluster: Any, tmp_path: Path
) -> None:
    (tmp_path / "construction").touch()
    env = RayVecEnv([factory(tmp_path)], resources={"CPU": 0})
    assert env.replacements == 1 and len(env.reset()) == 1
    process = env.apply(process_of, repeated="never")[0]
    env.close()
    wait_for_end(process)


def wait_for_end(process: int) -> None:
    """Returns once the process is gone."""
    deadline = time.monotonic() + 30
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < deadline, "the process is still there"
        time.sleep(0.05)
