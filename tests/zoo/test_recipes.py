"""``ppox train --recipe`` and ``recipe`` in a settings file: the recipe's settings, with the user's own before them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from sb3_ppo_ext_zoo import register
from sb3_ppo_ext_zoo.cli import main
from sb3_ppo_ext_zoo.experiment import Experiment
from sb3_ppo_ext_zoo.recipes import expanded, recipe_option

from sb3_ppo_ext import PPOX, recipe
from sb3_ppo_ext.vec_env import StaggeredStart


def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> PPOX:
    register()
    monkeypatch.setattr(Experiment, "recipe", "mujoco")
    experiment = Experiment(
        *(Namespace(), "ppox", "Pendulum-v1", str(tmp_path)), hyperparams=changes, verbose=0, eval_freq=-1
    )
    model = experiment.setup_experiment()[0]
    assert isinstance(model, PPOX) and model.env is not None
    model.env.close()
    evaluation = experiment.create_envs(1, eval_env=True)
    assert not any(evaluation.env_is_wrapped(StaggeredStart))
    evaluation.close()
    return model


def test_the_recipe_takes_the_place_of_the_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(tmp_path, monkeypatch)
    theirs = PPOX("MlpPolicy", "Pendulum-v1", **recipe("mujoco"), device="cpu")
    assert (model.n_envs, model.n_steps) == (8, 256)
    assert model.gamma == 0.99 and not model.use_sde  # the entry of Pendulum has 0.9, and gSDE
    assert model.knobs.values == theirs.knobs.values
    assert model.recompute_advantage and model.get_vec_normalize_env() is not None
    assert model.env is not None and all(model.env.env_is_wrapped(StaggeredStart))


def test_single_settings_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(tmp_path, monkeypatch, n_envs=2, gamma=0.9)
    assert (model.n_envs, model.n_steps, model.gamma) == (2, 1024, 0.9)


def test_the_option_is_taken_from_the_line_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--env", "Hopper-v5", "--recipe", "mujoco", "-n", "100"]
    assert recipe_option("train", line) == (["--env", "Hopper-v5", "-n", "100"], "mujoco")
    assert recipe_option("train", ["-conf", "mine.yml"]) == (["-conf", "mine.yml"], None)
    for wrong, complaint in (
        (["--recipe", "atari"], "invalid choice: 'atari'"),
        (["--recipe", "mujoco", "-conf", "mine.yml"], "not allowed with -conf/--conf-file"),
    ):
        with pytest.raises(SystemExit):
            recipe_option("train", wrong)
        assert complaint in capsys.readouterr().err


def test_the_settings_name_what_the_environments_need() -> None:
    settings = expanded({"recipe": "mujoco"}, "Hopper-v5")
    assert settings["normalize"] == "{'norm_obs': True, 'norm_reward': True}"
    assert settings["n_timesteps"] == 1_000_000
    assert settings["staggered_start"] is True
    assert "recipe" not in settings
    assert "staggered_start" not in expanded({"recipe": "mujoco", "vec_env": "envpool"}, "Hopper-v5")
    gym.register("Endless-v0", "gymnasium.envs.classic_control:PendulumEnv")  # without a limit of steps
    try:
        assert "staggered_start" not in expanded({"recipe": "mujoco"}, "Endless-v0")
    finally:
        del gym.registry["Endless-v0"]


def test_settings_beside_a_recipe_come_before_its_own() -> None:
    settings = expanded({"recipe": "mujoco", "n_envs": 4, "gamma": 0.9999}, "Swimmer-v5")
    assert settings == {**expanded({"recipe": "mujoco"}, "Swimmer-v5"), "n_envs": 4, "n_steps": 512, "gamma": 0.9999}
    assert expanded({"gamma": 0.9}, "Swimmer-v5") == {"gamma": 0.9}


def test_a_settings_file_may_name_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("Pendulum-v1: {recipe: mujoco, gamma: 0.9, n_envs: 2, n_timesteps: 2048}\n")
    monkeypatch.chdir(tmp_path)
    main(["train", "--env", "Pendulum-v1", "-conf", str(file), "--eval-freq", "-1", "--verbose", "0"])
    model = PPOX.load("logs/ppox/Pendulum-v1_1/Pendulum-v1.zip", device="cpu")
    assert (model.gamma, model.n_steps, model.num_timesteps) == (0.9, 1024, 2048)
    saved = Path("logs/ppox/Pendulum-v1_1/Pendulum-v1/config.yml").read_text()
    assert "recompute_advantage" in saved and "mujoco" not in saved  # what a recipe will be does not change a run
    file.write_text("Pendulum-v1: {recipe: atari}\n")
    with pytest.raises(ValueError, match="recipe='atari': one of 'mujoco' is needed"):
        main(["train", "--env", "Pendulum-v1", "-conf", str(file)])
