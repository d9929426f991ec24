"""TensorBoard's own readers on what a run leaves in its event files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import DISABLED, KVWriter, Logger, configure
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from sb3_ppo_ext import PPOX, AdaptiveKL
from sb3_ppo_ext.monitoring import (
    CHARTS,
    METRICS,
    OPTIONAL_CHARTS,
    as_text,
    write_dashboard,
    write_hyperparameters,
    write_pending,
)


def events(folder: Path | str) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def layout(accumulator: EventAccumulator) -> Layout:
    proto = Layout()
    proto.ParseFromString(accumulator.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    return proto


def titles(accumulator: EventAccumulator) -> list[str]:
    (category,) = layout(accumulator).category
    assert category.title == "PPOX"
    return [chart.title for chart in category.chart]


def every_knob(folder: Path) -> PPOX:
    """A short run in which everything that can be recorded is."""
    model = PPOX(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", 2, seed=0),
        n_steps=200,
        batch_size=100,
        n_epochs=2,
        seed=0,
        tensorboard_log=str(folder),
        learning_rate=AdaptiveKL(start=3e-4, target=0.01),
        clip_range_high=0.3,
        clip_range_vf=0.5,
        kl_coef=0.1,
        normalize_value=True,
    )
    evaluation = EvalCallback(make_vec_env("Pendulum-v1", 1), eval_freq=200, n_eval_episodes=1, verbose=0)
    return model.learn(800, callback=evaluation)


@pytest.fixture
def logging_to() -> Iterator[Callable[..., Logger]]:
    """Makes loggers, and closes their files after the test."""
    loggers: list[Logger] = []

    def logging_to(folder: Path, *formats: str) -> Logger:
        loggers.append(configure(str(folder), list(formats)))
        return loggers[-1]

    yield logging_to
    for logger in loggers:
        logger.close()


@pytest.fixture
def recorded(logging_to: Callable[..., Logger]) -> Callable[..., Logger]:
    """Makes loggers in which an update is recorded and not yet dumped."""

    def recorded(folder: Path, *formats: str) -> Logger:
        logger = logging_to(folder, *formats)
        logger.record("train/loss", 1.5)
        logger.record("train/n_updates", 10, exclude="tensorboard")
        logger.record_mean("train/reward", 2.0)
        return logger

    return recorded


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    folder = tmp_path_factory.mktemp("run")
    model = every_knob(folder)
    write_dashboard(model.logger)
    knobs = {"learning_rate": as_text(model.learning_rate), "clip_range": as_text(model.clip_range)}
    write_hyperparameters(model.logger, {**knobs, "use_sde": model.use_sde, "n_steps": model.n_steps})
    write_pending(model.logger, model.num_timesteps)
    return events(folder / "PPOX_1")


def test_every_chart_shows_scalars_that_the_run_wrote(run: EventAccumulator) -> None:
    written = set(run.Tags()["scalars"])
    (category,) = layout(run).category
    for chart in category.chart:
        tags = [tag.removesuffix("$") for tag in chart.multiline.tag]
        unknown = set(tags) - written - {"train/ref_kl_coef"}  # set for language models only
        assert not unknown, f"{chart.title!r} draws {unknown}"


def test_every_scalar_of_the_run_has_a_place_in_the_dashboard(run: EventAccumulator) -> None:
    drawn = {tag.removesuffix("$") for chart in layout(run).category[0].chart for tag in chart.multiline.tag}
    # The sums of others that are drawn.
    assert set(run.Tags()["scalars"]) - drawn <= {"train/loss", "train/clip_fraction"}


def test_a_chart_does_not_take_in_longer_names(run: EventAccumulator) -> None:
    tags = [tag for chart in layout(run).category[0].chart for tag in chart.multiline.tag]
    assert "train/clip_range$" in tags and "train/clip_range" not in tags


def test_optional_charts_are_there_only_with_their_scalars(
    run: EventAccumulator, tmp_path: Path, logging_to: Callable[..., Logger]
) -> None:
    write_dashboard(logging_to(tmp_path, "tensorboard"))
    assert titles(events(tmp_path)) == list(CHARTS)
    normaliser = "Value normaliser (reward units)"
    assert normaliser in OPTIONAL_CHARTS and normaliser in titles(run)
    assert "Rate of success" not in titles(run)


def hyperparameters_of(accumulator: EventAccumulator) -> dict[str, object]:
    content = accumulator.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in hparams.items()}


def test_hyperparameters_are_readable_and_their_metrics_have_values(run: EventAccumulator) -> None:
    read = hyperparameters_of(run)
    assert (read["clip_range"], read["use_sde"], read["n_steps"]) == ("0.2", "False", 200.0)
    assert str(read["learning_rate"]).startswith("AdaptiveKL(start=0.0003, target=0.01")
    content = run.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    metrics = [info.name.tag for info in HParamsPluginData.FromString(content).experiment.metric_infos]
    assert sorted(metrics) == sorted(METRICS)
    assert set(METRICS) <= set(run.Tags()["scalars"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3e-4, "0.0003"),
        (FloatSchedule(1e-5), "1e-05"),
        (FloatSchedule(LinearSchedule(1.0, 0.0, 1.0)), "LinearSchedule(start=1.0, end=0.0, end_fraction=1.0)"),
        (True, "True"),
        (None, "None"),
        (PPOX, "PPOX"),
        ({"net_arch": [64]}, "{'net_arch': [64]}"),
    ],
)
def test_hyperparameters_as_text(value: object, shown: str) -> None:
    assert as_text(value) == shown


def test_a_controller_that_has_moved_is_still_the_same_hyperparameter() -> None:
    controller = AdaptiveKL(start=3e-4, target=0.01)
    before = as_text(controller)
    controller.value = 1e-3
    assert as_text(controller) == before and "start=0.0003, target=0.01" in before


def test_a_schedule_without_a_text_form_is_named_not_addressed() -> None:
    def halving(progress_remaining: float) -> float:
        return progress_remaining / 2

    assert as_text(halving).endswith("halving")


def test_the_last_update_is_in_the_event_file(tmp_path: Path) -> None:
    model = every_knob(tmp_path)
    write_pending(model.logger, model.num_timesteps)
    losses = events(tmp_path / "PPOX_1").Scalars("train/loss")
    assert losses[-1].step == 800
    assert losses[-1].value == pytest.approx(model.logger.name_to_value["train/loss"])


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


def test_a_folder_written_twice_has_one_dashboard(tmp_path: Path, logging_to: Callable[..., Logger]) -> None:
    """As learn(reset_num_timesteps=False) does: TensorBoard takes the last of the layouts."""
    for _ in range(2):
        write_dashboard(logging_to(tmp_path, "tensorboard"))
    assert titles(events(tmp_path)) == list(CHARTS)
