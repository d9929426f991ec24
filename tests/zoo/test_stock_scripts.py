"""rl_zoo3's own scripts in a folder whose custom_envs.py holds the line that the README names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forked import Program

TINY = ["-n", "16", "--eval-freq", "-1", "-params", "n_envs:2", "n_steps:8", "batch_size:16", "n_epochs:1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "custom_envs.py").write_text("import sb3_ppo_ext_zoo.auto\n")
    return tmp_path


def stock(folder: Path, script: str, *arguments: str) -> str:
    """What ``python -m rl_zoo3.<script>`` prints there."""
    command = ("--env", "CartPole-v1", *arguments)
    status, printed = Program(f"rl_zoo3.{script}", *command, folder=folder, SDL_VIDEODRIVER="dummy").end()
    assert status == 0, printed
    return printed


def test_the_one_line_teaches_train_enjoy_and_record_video(folder: Path) -> None:
    printed = stock(folder, "train", "--algo", "ppox", *TINY)
    assert "sb3_ppo_ext_zoo/ppox.yml" in printed and "linear:0.2:0" in printed
    assert (folder / "logs/ppox/CartPole-v1_1/CartPole-v1.zip").is_file()
    # An episode lasts 500 steps at the most, and enjoy reports whole ones.
    played = stock(folder, "enjoy", "--algo", "ppox", "-f", "logs", "--no-render", "-n", "501")
    assert "Episode Reward" in played
    stock(folder, "record_video", "--algo", "ppox", "-f", "logs", "-n", "5")
    assert list(folder.rglob("*.mp4"))


def test_other_algorithms_work_as_before(folder: Path) -> None:
    assert "hyperparams/ppo.yml" in stock(folder, "train", "--algo", "ppo", *TINY)
