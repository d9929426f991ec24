from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from sb3_ppo_ext_zoo.experiment import SETTINGS, Experiment, default_settings

from sb3_ppo_ext import PPOX, AdaptiveKL, Cosine, Exponential, Linear, Threshold, Warmup, surrogate
from sb3_ppo_ext.objective.losses import clipped_surrogate

Build = Callable[..., PPOX]

RSL_RL = "{adaptive_kl: {start: 1.0e-3, target: 0.01, law: {threshold: {margin: 2, factor: 1.5}}, every: minibatch}}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("learning_rate: cosine:3e-4:1e-5", Cosine(3e-4, 1e-5)),
        (f"learning_rate: {RSL_RL}", AdaptiveKL(1e-3, 0.01, Threshold(2.0, 1.5), every="minibatch")),
        (
            "clip_range: {warmup: {fraction: 0.1, after: {linear: {start: 0.2, end: 0.1}}}}",
            Warmup(0.1, Linear(0.2, 0.1)),
        ),
        ("clip_range: lin_0.2", Linear(0.2, 0.0)),
        ("clip_range_vf: exponential:0.4:0.1", Exponential(0.4, 0.1)),
        ("clip_range_vf: null", None),
        ("ent_coef: {linear: {start: 0.01, end: 0.0}}", Linear(0.01, 0.0)),
        ("kl_coef: adaptive_kl:1.0:0.01", AdaptiveKL(1.0, 0.01)),
    ],
)
def test_a_knob_in_yaml_arrives_as_what_it_describes(line: str, expected: Any, build: Build) -> None:
    name = line.split(":")[0]
    if isinstance(expected, AdaptiveKL):
        expected = expected.bind(name)
    assert build(line).knobs.knobs[name] == expected


def test_numbers_in_yaml_arrive_as_numbers_also_where_yaml_reads_them_as_text(build: Build) -> None:
    numbers = build("learning_rate: 1e-4\nclip_range_high: 0.28\nvf_coef: 0.25\nclip_range_vf: 3e-1").knobs.numbers()
    expected = {"learning_rate": 1e-4, "clip_range_high": 0.28, "vf_coef": 0.25, "clip_range_vf": 0.3}
    assert {name: numbers[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("clip_range: sine:0.2:0.05", r"clip_range='sine:0\.2:0\.05'"),
        ("learning_rate: null", "learning_rate=None"),
        ("clip_range_vf: {cosine: {begin: 0.2}}", "clip_range_vf=.*start"),
        ("kl_coef: -1", "kl_coef=-1"),
        ("kl_coef: {adaptive_kl: {start: 1.0, target: 0}}", "kl_coef=.*target"),
        ("ent_coef: lin_high", "ent_coef='lin_high'"),
        pytest.param(
            "surrogate: sop",
            "surrogate='sop'.*spo",
            # rl_zoo3 opened the monitor file before it built the model.
            marks=pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        ),
        ("n_steps: 2.5e1x", "n_steps='2.5e1x'"),
        ("n_epochs: '1.5'", "n_epochs='1.5': a whole number"),
    ],
)
def test_a_bad_setting_is_a_value_error_that_names_it(line: str, complaint: str, build: Build) -> None:
    with pytest.raises(ValueError, match=complaint):
        build(line)


def test_an_objective_of_one_s_own_is_named_in_yaml(build: Build, objectives: None) -> None:
    surrogate("twice the clip")(partial(clipped_surrogate, low=0.4, high=0.4))
    assert build("surrogate: twice the clip\ndual_clip: 3.0").surrogate == "twice the clip"


def test_the_zoo_s_linear_schedule_does_not_turn_negative_when_the_last_rollout_overshoots(build: Build) -> None:
    clip_range = build("clip_range: lin_0.2").clip_range
    assert callable(clip_range)
    assert [clip_range(1.0), clip_range(0.5), clip_range(-0.1)] == [0.2, 0.1, 0.0]


def test_the_other_settings_take_numbers_written_as_text_too(build: Build) -> None:
    model = build("n_steps: 6.4e1\nbatch_size: 32\ngamma: 9e-1\ntarget_kl: 3e-2")
    assert (model.n_steps, model.gamma, model.target_kl) == (64, 0.9, 0.03)
    assert isinstance(model.n_steps, int)


def test_overridden_settings_win_and_are_what_config_yml_says(build: Build, tmp_path: Path) -> None:
    override = {"kl_coef": {"adaptive_kl": {"start": 2.0, "target": 0.02}}, "clip_range": "lin_0.3"}
    model = build("clip_range: 0.2\nkl_coef: 0.1", hyperparams=override)
    assert model.knobs.values.kl_coef == 2.0 and model.knobs.values.clip_range == 0.3
    saved = yaml.unsafe_load((tmp_path / "logs/ppox/CartPole-v1_1/CartPole-v1/config.yml").read_text())
    assert {name: saved[name] for name in override} == override


def test_two_models_of_one_experiment_do_not_share_a_controller(build: Build) -> None:
    line = f"learning_rate: {RSL_RL}"
    first, second = build(line), build(line)
    first.knobs.controllers["learning_rate"].update(1.0, samples=64)
    assert first.knobs.controllers["learning_rate"].value < 1e-3 == second.knobs.controllers["learning_rate"].value


def test_settings_come_from_ppox_yml_then_from_the_zoo_s_ppo_yml_then_from_default() -> None:
    assert default_settings("CartPole-v1", atari=False) == SETTINGS
    assert default_settings("PongNoFrameskip-v4", atari=True) == SETTINGS
    assert default_settings("MiniGrid-Unlock-v0", atari=False).name == "ppo.yml"
    assert default_settings("Nowhere-v0", atari=False) == SETTINGS


def test_other_algorithms_keep_the_zoo_s_own_reading_of_schedules(tmp_path: Path) -> None:
    config = tmp_path / "ppo.yml"
    config.write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 100, clip_range: lin_0.2, learning_rate: 0.01}")
    experiment = Experiment(None, "ppo", "CartPole-v1", str(tmp_path), config=str(config), verbose=0)  # type: ignore[arg-type]
    schedules = experiment._preprocess_schedules({"clip_range": "lin_0.2"})
    assert type(schedules["clip_range"]).__name__ == "SimpleLinearSchedule"
    stock = Experiment(None, "ppo", "CartPole-v1", str(tmp_path), verbose=0)  # type: ignore[arg-type]
    assert stock.config.endswith("hyperparams/ppo.yml")


def test_evaluations_run_with_the_settings_file_s_env_kwargs(tmp_path: Path) -> None:
    config = tmp_path / "mine.yml"
    config.write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 100, env_kwargs: {sutton_barto_reward: true}}")

    def evaluated(**options: Any) -> Any:
        experiment = Experiment(None, "ppox", "CartPole-v1", str(tmp_path), config=str(config), verbose=0, **options)  # type: ignore[arg-type]
        experiment._preprocess_hyperparams(experiment.read_hyperparameters()[0])
        return experiment.create_envs(1, eval_env=True, no_log=True).get_attr("_sutton_barto_reward")

    assert evaluated() == [True]
    assert evaluated(eval_env_kwargs={"sutton_barto_reward": False}) == [False]


def test_a_policy_that_a_continued_agent_does_not_take_is_warned_of(tmp_path: Path) -> None:
    agent = tmp_path / "agent.zip"
    agent.touch()
    options = {"trained_agent": str(agent), "hyperparams": {"policy_kwargs": {"net_arch": [8]}, "gamma": 0.9}}
    experiment = Experiment(None, "ppox", "CartPole-v1", str(tmp_path), verbose=0, **options)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="policy_kwargs: of no effect, the trained agent keeps its policy"):
        experiment.read_hyperparameters()
