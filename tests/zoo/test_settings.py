from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from sb3_ppo_ext_zoo.cli import main
from sb3_ppo_ext_zoo.experiment import SETTINGS
from sb3_ppo_ext_zoo.recipes import expanded

from sb3_ppo_ext import PPOX

ENTRIES: dict[str, dict[str, Any]] = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
EXAMPLE = Path(__file__).parents[2] / "examples" / "zoo_config" / "my_ppox.yml"
PROMISED = (
    *("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"),
    *("LunarLander-v3", "LunarLanderContinuous-v3", "BipedalWalker-v3"),
    *("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Swimmer-v5", "Humanoid-v5", "Reacher-v5"),
    *("InvertedPendulum-v5", "InvertedDoublePendulum-v5"),
)


def test_every_promised_environment_has_an_entry() -> None:
    assert set(ENTRIES) == {*PROMISED, "atari", "default"}


@pytest.mark.parametrize("name", [name for name in ENTRIES if name != "default"])
def test_an_entry_constructs_and_trains_for_one_rollout(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "atari" and importlib.util.find_spec("ale_py") is None:
        pytest.skip("ale-py is not installed")
    monkeypatch.chdir(tmp_path)
    env = "PongNoFrameskip-v4" if name == "atari" else name
    short = ["n_envs:2", "n_steps:8", "batch_size:16", "n_epochs:1"]
    main(["train", "--env", env, "-n", "16", "--eval-freq", "-1", "--verbose", "0", "-params", *short])
    model = PPOX.load(f"logs/ppox/{env}_1/{env}.zip", device="cpu")
    assert model.num_timesteps == 16 and model._n_updates == 1
    assert model.gamma == ENTRIES[name].get("gamma", 0.99)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_example_s_settings_file_trains(env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["n_envs:2", "n_steps:32", "batch_size:32", "n_epochs:2"]
    run = ["-n", "64", "--eval-freq", "-1", "--verbose", "0", "-params", *short]
    main(["train", "-conf", str(EXAMPLE), "--env", env, *run])
    knobs = PPOX.load(f"logs/ppox/{env}_1/{env}.zip", device="cpu").knobs
    assert set(knobs.controllers) == {"CartPole-v1": set(), "Pendulum-v1": {"kl_coef"}}[env]


@pytest.mark.parametrize("name", PROMISED)
def test_the_minibatches_of_an_entry_divide_its_rollout(name: str) -> None:
    # Otherwise Stable-Baselines3 warns at every start, and the last minibatch is noisier than the others.
    entry = expanded(ENTRIES[name], name)
    steps = entry.get("n_envs", 1) * entry.get("n_steps", 2048)
    assert steps % entry.get("batch_size", 64) == 0
