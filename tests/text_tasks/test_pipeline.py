"""`ppox train --env PromptCopy-v0 --gym-packages text_tasks` and what follows, with hardly pretrained models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("transformers")

from sb3_ppo_ext_zoo.cli import main
from stable_baselines3.common.vec_env import DummyVecEnv
from text_tasks import ENVIRONMENTS
from text_tasks.copying import MODEL, PromptCopyPolicy

from sb3_ppo_ext import PPOX, AdaptiveKL, Proportional
from tests.forked import Program

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join(map(str, (ROOT, ROOT / "integrations", ROOT / "examples")))
SETTINGS = ROOT / "examples/text_tasks/ppox.yml"
TASKS = ["--gym-packages", "text_tasks"]
FIRST = "logs/ppox/PromptCopy-v0_1"
SHORT = ["n_envs:4", "n_steps:4", "batch_size:8", "n_epochs:1", "policy_kwargs:dict(pretraining_steps=2)"]
SEED = ["--seed", "1", "--num-threads", "1", "-n", "32", "--verbose", "0"]
TRAIN = ["train", "--env", "PromptCopy-v0", *TASKS, *SEED]
OURS = ["-conf", str(SETTINGS)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which `ppox train` ran, its models in a folder of their own."""
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SB3_PPO_EXT_CACHE_DIR", str(folder / "cache"))
        assert main([*TRAIN, *OURS, "--eval-freq", "16", "--eval-episodes", "4", "-tb", "tb", "-params", *SHORT]) == 0
        yield folder


def test_train_follows_the_entry_of_ppox_yml(trained: Path) -> None:
    model = PPOX.load(f"{FIRST}/PromptCopy-v0.zip", device="cpu")
    assert isinstance(model.policy, PromptCopyPolicy) and model.num_timesteps == 32
    assert model.policy_kwargs == {"pretraining_steps": 2}
    coefficient = model.knobs.knobs["ref_kl_coef"]
    assert isinstance(coefficient, AdaptiveKL) and coefficient.law == Proportional(1000)
    assert model.rollout_buffer.settings.missing_eos_penalty == 0.5  # type: ignore[attr-defined]  # of tokens
    assert np.load(f"{FIRST}/evaluations.npz")["results"].shape == (2, 4)
    assert list((trained / "tb").rglob("events.out*"))


def test_all_environments_share_one_generation(trained: Path) -> None:
    # rl_zoo3 makes one environment each; the policy writes to all prompts at once.
    model = PPOX.load(f"{FIRST}/PromptCopy-v0.zip", device="cpu")
    env = DummyVecEnv([lambda: gym.make("PromptCopy-v0")] * 3)
    observation = env.reset()
    assert isinstance(observation, dict) and observation["input_ids"].shape == (3, 9)
    assert model.predict(observation)[0].shape == (3, 6)


def test_enjoy_plays_it_and_shows_what_is_written(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["enjoy", "--env", "PromptCopy-v0", *TASKS, "-n", "5", "--exp-id", "1", "--env-kwargs", "split:'held_out'"])
    printed = capsys.readouterr().out
    assert f"Loading {FIRST}/PromptCopy-v0.zip" in printed and "Mean reward:" in printed and "Success rate:" in printed
    assert sum(line.startswith("copy ") for line in printed.splitlines()) >= 5


def test_a_run_goes_on_from_its_zip(trained: Path) -> None:
    before = PPOX.load(f"{FIRST}/PromptCopy-v0.zip", device="cpu")
    main([*TRAIN, *OURS, "--eval-freq", "-1", "-i", f"{FIRST}/PromptCopy-v0.zip", "-params", *SHORT[:-1]])
    after = PPOX.load("logs/ppox/PromptCopy-v0_2/PromptCopy-v0.zip", device="cpu")
    assert after._n_updates == before._n_updates + 2
    assert any(
        not torch.equal(a, b) for a, b in zip(before.policy.parameters(), after.policy.parameters(), strict=True)
    )
    # The reference is the pretrained model still, not what training began with this time.
    assert isinstance(after.policy, PromptCopyPolicy) and after.policy.reference is not None
    reference = after.policy.reference.plain.get_output_embeddings().weight
    fresh = replace(MODEL, steps=2)()
    torch.testing.assert_close(reference, fresh.get_output_embeddings().weight, rtol=0, atol=0)


def test_yaml_names_another_model_or_an_adapter(trained: Path) -> None:
    (folder,) = Path("cache/models").iterdir()
    settings = {
        "PromptCopy-v0": {
            "policy": "sb3_ppo_ext.language.LanguageModelPolicy",
            "policy_kwargs": {"model": str(folder), "lora": {"r": 2}, "value": "branch"},
            **{"n_timesteps": 8, "n_envs": 2, "n_steps": 4, "batch_size": 8, "ref_kl_coef": "adaptive_kl:0.1:4.0"},
        }
    }
    Path("mine.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    main(["train", "--env", "PromptCopy-v0", *TASKS, "-conf", "mine.yml", "--eval-freq", "-1", "-f", "mine"])
    model = PPOX.load("mine/ppox/PromptCopy-v0_1/PromptCopy-v0.zip", device="cpu")
    trained_names = {name for name, value in model.policy.named_parameters() if value.requires_grad}
    assert any("lora_A" in name for name in trained_names) and model.knobs.values.ref_kl_coef > 0


@pytest.mark.parametrize("env", [name for name in ENVIRONMENTS if name != "PromptCopy-v0"])
def test_the_other_entries_train_and_are_played(env: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = [*SHORT[:-1], "policy_kwargs:dict(pretraining_steps=0)"]
    main(["train", "--env", env, *TASKS, *OURS, *SEED, "--eval-freq", "-1", "-params", *short])
    main(["enjoy", "--env", env, *TASKS, "--no-render", "-n", "30"])
    assert "Mean reward:" in capsys.readouterr().out


def test_rl_zoo3_s_own_scripts_find_them_after_the_one_line(trained: Path) -> None:
    Path("custom_envs.py").write_text("import sb3_ppo_ext_zoo.auto\n")
    command = ("--algo", "ppox", *TRAIN[1:], *OURS, "--eval-freq", "-1", "-f", "stock", "-params", *SHORT)
    status, printed = Program("rl_zoo3.train", *command, folder=trained).end()
    assert status == 0, printed
    assert Path("stock/ppox/PromptCopy-v0_1/PromptCopy-v0.zip").is_file()


def test_the_package_registers_its_tasks_without_transformers() -> None:
    program = "import gymnasium, sys, text_tasks; print(*map(gymnasium.spec, text_tasks.ENVIRONMENTS), *sys.modules)"
    environment = {**os.environ, "PYTHONPATH": PATH}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    assert all(name in done.stdout for name in ENVIRONMENTS) and "transformers" not in done.stdout.split()


def test_the_minibatches_of_an_entry_divide_its_rollout() -> None:
    entries = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    assert entries.keys() == ENVIRONMENTS.keys()
    assert not [name for name, entry in entries.items() if entry["n_envs"] * entry["n_steps"] % entry["batch_size"]]
