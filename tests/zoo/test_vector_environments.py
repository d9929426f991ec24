"""``vec_env`` in YAML and ``--vec-env``, up to playing what was trained."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sb3_ppo_ext_zoo.cli import main
from sb3_ppo_ext_zoo.experiment import Experiment
from sb3_ppo_ext_zoo.vector_environments import NAMES, parse_vec_env, vec_env_as_setting
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.vec_env import EnvPoolVecEnv, GymnasiumVecEnv
from tests.environments import needs_envpool

Build = Callable[..., PPOX]

SETTINGS = """
CartPole-v1:
  policy: MlpPolicy
  normalize: true
  n_envs: 4
  n_timesteps: 512
  n_steps: 32
  batch_size: 64
  n_epochs: 2
  vec_env: {kind}
"""


def class_of(model: PPOX) -> type:
    assert model.env is not None
    return type(model.env.unwrapped)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vec_env: dummy", DummyVecEnv),
        ("vec_env: {subproc: {start_method: fork}}", SubprocVecEnv),
        ("vec_env: gymnasium", GymnasiumVecEnv),
        pytest.param("vec_env: envpool", EnvPoolVecEnv, marks=needs_envpool),
    ],
)
def test_the_setting_names_the_vec_env(line: str, expected: type, build: Build) -> None:
    model = build(f"{line}\nn_envs: 3\nnormalize: true")
    assert class_of(model) is expected and isinstance(model.env, VecNormalize) and model.n_envs == 3


@needs_envpool
def test_arguments_of_the_environment_and_of_the_vec_env_arrive(build: Build) -> None:
    settings = "env_kwargs: {max_episode_steps: 40}\nvec_env: {envpool: {threads: 1}}"
    env: Any = build(settings).env
    assert env.get_attr("max_episode_steps") == [40] and env.get_attr("num_threads") == [1]
    settings = "env_kwargs: {sutton_barto_reward: true}\nvec_env: {gymnasium: {vectorization_mode: sync}}\nn_envs: 2"
    env = build(settings).env
    assert len(env.env.envs) == 2 and env.get_attr("_sutton_barto_reward") == [True, True]


def test_trials_in_threads_make_each_the_environment_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "mine.yml"
    config.write_text("CartPole-v1: {policy: P, n_timesteps: 8, vec_env: {gymnasium: {vectorization_mode: sync}}}")
    kwargs: dict[str, Any] = {"eval_env_kwargs": {"sutton_barto_reward": True}, "verbose": 0, "config": str(config)}
    experiment = Experiment(None, "ppox", "CartPole-v1", str(tmp_path), **kwargs)  # type: ignore[arg-type]
    experiment._preprocess_hyperparams(experiment.read_hyperparameters()[0])
    first, other = threading.Event(), threading.Event()

    def pause(env_id: str) -> bool:  # rl_zoo3 asks this on its way to the VecEnv's class
        if not first.is_set():
            first.set()
            other.wait(0.3)  # the evaluation's thread may overtake the training's here, if it can
        return False

    monkeypatch.setattr(experiment, "is_robotics_env", pause)
    with ThreadPoolExecutor(2) as threads:
        training = threads.submit(experiment.create_envs, 1, no_log=True)
        first.wait()
        evaluation = threads.submit(experiment.create_envs, 1, eval_env=True)
        evaluation.add_done_callback(lambda done: other.set())
        assert training.result().get_attr("_sutton_barto_reward") == [False]
        assert evaluation.result().get_attr("_sutton_barto_reward") == [True]


def test_an_env_wrapper_lies_above_the_score(build: Build) -> None:
    wrapper = "{gymnasium.wrappers.ClipReward: {min_reward: 0.0, max_reward: 0.5}}"
    env = build(f"vec_env: gymnasium\nenv_wrapper: {wrapper}\nn_envs: 2").env
    assert env is not None
    env.reset()
    while not any(infos := (step := env.step(np.array([1, 1])))[3]):
        assert (step[1] == 0.5).all()
    assert all(info["episode"]["r"] == info["episode"]["l"] for info in infos if info)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("vec_env: isaac", "vec_env='isaac': one of dummy, subproc, gymnasium, envpool, ray"),
        ("vec_env: {envpool: 3}", "vec_env={'envpool': 3}"),
        ("vec_env: {dummy: {}, subproc: {}}", "vec_env=.*one of"),
        ("vec_env: gymnasium\nmonitor_kwargs: {info_keywords: [a]}", "monitor_kwargs=.*vec_env='gymnasium'"),
        pytest.param(
            "vec_env: envpool\nenv_wrapper: gymnasium.wrappers.TimeAwareObservation",
            "env_wrapper cannot reach into EnvPool",
            marks=needs_envpool,
        ),
    ],
)
def test_a_bad_setting_is_a_value_error_that_names_it(settings: str, complaint: str, build: Build) -> None:
    with pytest.raises(ValueError, match=complaint):
        build(settings)


def test_a_name_alone_and_a_name_with_arguments_are_read() -> None:
    assert [parse_vec_env(name) for name in NAMES] == [(name, {}) for name in NAMES]
    assert parse_vec_env({"envpool": {"threads": 2}}) == ("envpool", {"threads": 2})
    assert parse_vec_env({"gymnasium": None}) == ("gymnasium", {})


@pytest.mark.parametrize(
    ("typed", "passed_on"),
    [
        (["-n", "5"], ["-n", "5"]),
        (["--vec-env", "envpool", "-n", "5"], ["-n", "5", "-params", "vec_env:'envpool'"]),
        (
            ["-params", "a:1", "vec_env:'dummy'", "--vec-env=gymnasium", "-n", "5"],
            ["-params", "a:1", "vec_env:'dummy'", "vec_env:'gymnasium'", "-n", "5"],
        ),
        (["--vec-env", "dummy", "--hyperparams", "a:1"], ["--hyperparams", "a:1", "vec_env:'dummy'"]),
    ],
)
def test_the_option_becomes_a_setting(typed: list[str], passed_on: list[str]) -> None:
    assert vec_env_as_setting("train", typed) == passed_on


def test_an_unknown_name_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--env", "CartPole-v1", "--vec-env", "isaac"])
    error = capsys.readouterr().err
    assert "ppox train" in error and all(name in error for name in NAMES)


@pytest.mark.parametrize("kind", [pytest.param("envpool", marks=needs_envpool), "gymnasium"])
def test_train_continue_and_enjoy(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yml").write_text(SETTINGS.format(kind="subproc"))
    train = ["train", "--env", "CartPole-v1", "-conf", "mine.yml", "--seed", "3", "--vec-env", kind]
    main([*train, "--eval-freq", "128", "--eval-episodes", "2", "-params", "gamma:0.98"])
    run = Path("logs/ppox/CartPole-v1_1")
    config = yaml.unsafe_load((run / "CartPole-v1/config.yml").read_text())
    assert (config["vec_env"], config["gamma"]) == (kind, 0.98)
    evaluations = np.load(run / "evaluations.npz")
    np.testing.assert_array_equal(evaluations["results"], evaluations["ep_lengths"])
    finished = load_results(str(run))
    assert len(finished) > 4 and (finished["r"] == finished["l"]).all()
    main([*train, "-i", str(run / "CartPole-v1.zip"), "-n", "128", "--eval-freq", "-1"])
    assert Path("logs/ppox/CartPole-v1_2/CartPole-v1.zip").is_file()
    main(["enjoy", "--env", "CartPole-v1", "--no-render", "-n", "600", "--exp-id", "1"])
    assert "Mean reward:" in capsys.readouterr().out
