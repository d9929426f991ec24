"""``ppox train --recipe``: the recipe's settings, and nothing of the environment's entry in ``ppox.yml``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from sb3_ppo_ext_zoo import register
from sb3_ppo_ext_zoo.experiment import Experiment
from sb3_ppo_ext_zoo.recipes import recipe_option, settings_of

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
    settings = settings_of("mujoco", {})
    assert settings["normalize"] == "{'norm_obs': True, 'norm_reward': True}"
    assert settings["n_timesteps"] == 1_000_000
    assert settings_of("mujoco", {}, 1000)["staggered_start"] is True
    for without in (settings, settings_of("mujoco", {"vec_env": "envpool"}, 1000)):
        assert "staggered_start" not in without
