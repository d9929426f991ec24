"""``ppox train --run NAME --resume``: nothing there, it starts; stopped, it goes on; finished, it says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_ppo_ext_zoo.cli import main
from sb3_ppo_ext_zoo.experiment import Experiment

from sb3_ppo_ext import PPOX, Checkpoints
from sb3_ppo_ext.checkpoints.folder import stored
from sb3_ppo_ext.checkpoints.reading import required

SETTINGS = """
CartPole-v1:
  policy: MlpPolicy
  normalize: true
  n_envs: 2
  n_timesteps: 256
  n_steps: 32
  batch_size: 32
  n_epochs: 2
  clip_range: cosine:0.3:0.1
"""
TRAIN = ["train", "--env", "CartPole-v1", "-conf", "mine.yml", "--num-threads", "1", "--device", "cpu"]
TRAIN += ["--verbose", "0"]
TRAIN += ["--checkpoint-every", "0s", "--eval-freq", "64", "--eval-episodes", "2", "-tb", "tb"]


class Stopped(Exception):
    pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    Path("mine.yml").write_text(SETTINGS)
    yield tmp_path / "logs/ppox"


def stop_after(updates: int, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The command, ended in an update by something that leaves it no time."""
    train = PPOX.train
    done: list[int] = []

    def counted(self: PPOX) -> None:
        if len(done) == updates:
            raise Stopped
        train(self)
        done.append(1)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(PPOX, "train", counted)
        main([*TRAIN, *arguments])


def parameters(path: Path) -> torch.Tensor:
    model = PPOX.load(path / "CartPole-v1.zip", device="cpu")
    assert model.num_timesteps == 256
    return torch.cat([parameter.flatten() for parameter in model.policy.parameters()])


def test_a_stopped_run_goes_on_and_ends_as_an_unbroken_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*TRAIN, "--run", "whole", "--seed", "3"]) == 0
    stop_after(1, monkeypatch, "--run", "broken", "--seed", "3", "--resume")
    stop_after(2, monkeypatch, "--run", "broken", "--resume")
    assert required(folder / "broken").manifest["step"] == 192
    assert main([*TRAIN, "--run", "broken", "--resume"]) == 0
    assert torch.equal(parameters(folder / "broken"), parameters(folder / "whole"))
    for file in ("0.monitor.csv", "1.monitor.csv"):
        paths = [folder / run / file for run in ("whole", "broken")]
        mine, theirs = (np.genfromtxt(path, delimiter=",", skip_header=2)[..., :2] for path in paths)
        np.testing.assert_array_equal(mine, theirs)
    first, second = (np.load(folder / run / "evaluations.npz")["results"] for run in ("whole", "broken"))
    np.testing.assert_array_equal(first, second)
    assert (folder / "broken/CartPole-v1/vecnormalize.pkl").is_file()
    assert Experiment.run is None  # other experiments of this process are no part of the run


def test_a_finished_run_is_not_trained_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TRAIN, "--run", "a", "--resume"]
    assert main(command) == 0
    before = [path.name for path in stored(folder / "a")]
    assert main(command) == 0
    assert "the run is finished, with 256 timesteps" in capsys.readouterr().out
    assert [path.name for path in stored(folder / "a")] == before
    assert main([*command, "-n", "320"]) == 0
    assert required(folder / "a").manifest["step"] == 320


def test_what_does_not_go_with_the_run_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(2, monkeypatch, "--run", "a")
    refused: dict[str, list[str]] = {
        r"has checkpoints of a run; add --resume": [],
        r"other settings: .*gamma is 0.9 and was None": ["--resume", "-params", "gamma:0.9"],
        r"--seed 7: the run a was begun with": ["--resume", "--seed", "7"],
    }
    for text, arguments in refused.items():
        with pytest.raises(ValueError, match=text):
            main([*TRAIN, "--run", "a", *arguments])
    for wrong in (["--resume"], ["--run", "a/b"], ["--run", "a", "-i", "x.zip"]):
        with pytest.raises(SystemExit, match="2"):
            main([*TRAIN, *wrong])
    assert required(folder / "a").manifest["step"] == 128


def test_a_run_is_played_while_it_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(2, monkeypatch, "--run", "a")
    seen: list[Any] = []
    load: Any = PPOX.load

    def noting(path: Any, **options: Any) -> PPOX:
        seen.append(path)
        return load(path, **options)  # type: ignore[no-any-return]  # load is any

    monkeypatch.setattr(PPOX, "load", noting)
    assert main(["enjoy", "--env", "CartPole-v1", "--run", "a", "--no-render", "-n", "20", "--device", "cpu"]) == 0
    assert str(seen[0]).endswith("step_000000000128/model.zip")
    assert Checkpoints(folder / "a").exist()
