"""``ppox train`` by several processes: the settings are those of all, and rank 0 alone writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sb3_ppo_ext_zoo.cli import main
from sb3_ppo_ext_zoo.processes import Share, of_this_process, share_of

from tests.distributed.worker import launch, results
from tests.event_files import events

SETTINGS = """
CartPole-v1:
  policy: MlpPolicy
  normalize: true
  n_envs: 4
  n_timesteps: 512
  n_steps: 32
  batch_size: 32
  n_epochs: 2
"""
TRAIN = ["train", "--env", "CartPole-v1", "-conf", "mine.yml", "--device", "cpu", "--eval-freq", "128"]
TRAIN += ["--eval-episodes", "2", "--num-threads", "1", "-tb", "tb"]


def scalars(folder: Path) -> dict[str, list[tuple[float, float]]]:
    found = events(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@dataclass
class Rank:
    rank: int
    count: int


def test_two_processes_leave_the_files_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"one": tmp_path / "one", "two": tmp_path / "two"}
    for folder in folders.values():
        folder.mkdir()
        (folder / "mine.yml").write_text(SETTINGS)
    children = launch(2, folders["two"], *TRAIN, "--seed", "3", module="tests.zoo.process")
    monkeypatch.chdir(folders["one"])
    assert main([*TRAIN, "--seed", "3", "-params", "shards:2"]) == 0
    results(children, folders["two"])
    runs = {name: folder / "logs/ppox/CartPole-v1_1" for name, folder in folders.items()}
    files = [sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) for run in runs.values()]
    assert files[0] == files[1] and "3.monitor.csv" in files[0]
    for index in range(4):  # environments are seeded by their index among all
        mine, theirs = (
            np.genfromtxt(run / f"{index}.monitor.csv", delimiter=",", skip_header=2)[..., :2] for run in runs.values()
        )
        np.testing.assert_array_equal(mine, theirs)
    mine, theirs = (np.load(run / "evaluations.npz")["results"] for run in runs.values())
    np.testing.assert_array_equal(mine, theirs)
    logs = [scalars(folder / "tb/CartPole-v1/PPOX_1") for folder in folders.values()]
    assert logs[0].keys() == logs[1].keys()
    assert {"eval/mean_reward", "rollout/ep_rew_mean", "train/kl_exact", "train/loss"} <= logs[0].keys()
    for tag in logs[0]:
        if not tag.startswith("time/"):
            np.testing.assert_allclose(logs[1][tag], logs[0][tag], rtol=1e-4, atol=1e-5, err_msg=tag)


def test_environments_are_divided_by_shards() -> None:
    processes: list[Any] = [Rank(rank, 3) for rank in range(3)]
    assert [share_of(8, 4, each) for each in processes] == [Share(4, 0), Share(2, 4), Share(2, 6)]
    assert [share_of(6, None, each) for each in processes] == [Share(2, 0), Share(2, 2), Share(2, 4)]
    alone: Any = Rank(0, 1)
    assert share_of(5, None, alone) == Share(5, 0) and share_of(6, 2, alone) == Share(6, 0)


def test_what_cannot_be_divided_is_refused_with_numbers_that_can(capsys: pytest.CaptureFixture[str]) -> None:
    pair: Any = Rank(1, 2)
    with pytest.raises(ValueError, match=r"n_envs=5: .* 2 processes; 4 or 6 can be: -params n_envs:4"):
        share_of(5, None, pair)
    with pytest.raises(ValueError, match=r"n_envs=1: .* 4 shards; 4 can be"):
        share_of(1, 4, pair)
    with pytest.raises(ValueError, match="shards=1: 2 processes need a shard each"):
        share_of(4, 1, pair)
    with pytest.raises(SystemExit):
        of_this_process("optimize", ["--optimize-hyperparameters"], pair)
    assert "a search is made by one process" in capsys.readouterr().err
    assert of_this_process("train", ["--track", "--env", "a"], pair) == ["--env", "a"]
