"""The last update in every output of a logger: once, and only while they are open."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.logger import DISABLED, KVWriter, Logger, configure

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.monitoring.charts import CHARTS
from sb3_ppo_ext.monitoring.tensorboard import forget_written, write_dashboard, write_hyperparameters, write_pending
from tests.event_files import events, titles


def test_pending_records_reach_every_output_and_stay(
    tmp_path: Path, recorded: Callable[..., Logger], capsys: pytest.CaptureFixture[str]
) -> None:
    logger = recorded(tmp_path, "stdout", "log", "json", "csv", "tensorboard")
    before = dict(logger.name_to_value), dict(logger.name_to_excluded), dict(logger.name_to_count)
    write_pending(logger, 64)
    assert (dict(logger.name_to_value), dict(logger.name_to_excluded), dict(logger.name_to_count)) == before
    assert "loss" in capsys.readouterr().out and "loss" in (tmp_path / "log.txt").read_text()
    row = {"time/total_timesteps": 64, "train/loss": 1.5, "train/n_updates": 10, "train/reward": 2.0}
    assert json.loads((tmp_path / "progress.json").read_text()) == row
    (line,) = csv.DictReader((tmp_path / "progress.csv").read_text().splitlines())
    assert {name: float(value) for name, value in line.items()} == row
    read = events(tmp_path)
    assert read.Tags()["scalars"] == ["train/loss", "train/reward"]
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [(64, 1.5)]


def test_nothing_new_is_written_twice(tmp_path: Path, recorded: Callable[..., Logger]) -> None:
    logger = recorded(tmp_path, "json")
    write_pending(logger, 64)
    write_pending(logger, 128)
    assert len((tmp_path / "progress.json").read_text().splitlines()) == 1
    logger.record("train/loss", float("1.5"))  # the same value, but of another update
    write_pending(logger, 128)
    assert len((tmp_path / "progress.json").read_text().splitlines()) == 2


def test_an_empty_or_silenced_or_closed_logger_is_left_alone(
    tmp_path: Path, recorded: Callable[..., Logger], logging_to: Callable[..., Logger]
) -> None:
    silent = recorded(tmp_path / "silent", "json")
    silent.set_level(DISABLED)
    write_pending(silent, 64)
    closed = recorded(tmp_path / "closed", "stdout", "log", "json", "csv", "tensorboard")
    closed.close()
    write_pending(closed, 64)
    write_dashboard(closed)
    write_hyperparameters(closed, {"clip_range": 0.2})
    empty = logging_to(tmp_path / "empty", "json")
    write_pending(empty, 64)
    for name in ("silent", "closed", "empty"):
        assert (tmp_path / name / "progress.json").read_text() == ""


class Remembered(KVWriter):
    """An output of the user's own, without a file."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        assert key_values.keys() == key_excluded.keys()
        self.rows.append((step, dict(key_values)))

    def close(self) -> None:
        raise AssertionError("not ours to close")


def test_a_custom_logger_gets_the_last_update_as_well() -> None:
    output = Remembered()
    model = PPOX("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1)
    model.set_logger(Logger(None, [output]))
    model.learn(64)
    write_dashboard(model.logger)
    write_hyperparameters(model.logger, {"clip_range": 0.2})
    write_pending(model.logger, model.num_timesteps)
    step, row = output.rows[-1]
    assert step == 64 and row["train/loss"] == model.logger.name_to_value["train/loss"]
    # Two dumps, each before its update, and the last update: once.
    assert [step for step, _ in output.rows] == [32, 64, 64]


@pytest.mark.parametrize("log_interval", [1, 2, None])
def test_repeated_calls_of_learn_write_each_update_once(log_interval: int | None, tmp_path: Path) -> None:
    model = PPOX("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, seed=0, compile=False)
    model.set_logger(configure(str(tmp_path), ["csv", "json", "tensorboard"]))
    for _ in range(3):
        model.learn(64, log_interval=log_interval, reset_num_timesteps=False)
        assert model.logger.name_to_value["train/n_updates"] == model._n_updates  # still there to be read
    model.learn(0, log_interval=log_interval, reset_num_timesteps=False)
    assert model.logger.name_to_value["train/n_updates"] == 6
    model.logger.close()
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    updates = [row["train/n_updates"] for row in rows if "train/n_updates" in row]
    # The first of each call's two is dumped with the second rollout, the second at the end of the call.
    assert updates == ([] if log_interval is None else [1, 2, 3, 4, 5, 6])
    with (tmp_path / "progress.csv").open() as file:
        in_csv = [row["train/n_updates"] for row in csv.DictReader(file) if row.get("train/n_updates")]
    assert [float(value) for value in in_csv] == updates
    if updates:
        losses = [(event.step, event.value) for event in events(tmp_path).Scalars("train/loss")]
        assert [step for step, _ in losses] == [64, 64, 128, 128, 192, 192]
        assert len({value for _, value in losses}) == 6


def test_what_was_recorded_anew_is_kept(tmp_path: Path, recorded: Callable[..., Logger]) -> None:
    logger = recorded(tmp_path, "json")
    write_pending(logger, 64)
    logger.record("train/loss", float("2.5"))
    forget_written(logger)
    assert dict(logger.name_to_value) == {"train/loss": 2.5}
    assert set(logger.name_to_excluded) == {"train/loss"} and "train/reward" not in logger.name_to_count


def test_a_folder_written_twice_has_one_dashboard(tmp_path: Path, logging_to: Callable[..., Logger]) -> None:
    """As learn(reset_num_timesteps=False) does: TensorBoard takes the last of the layouts."""
    for _ in range(2):
        write_dashboard(logging_to(tmp_path, "tensorboard"))
    assert titles(events(tmp_path)) == list(CHARTS)
