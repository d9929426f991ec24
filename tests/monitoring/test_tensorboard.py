"""TensorBoard's own readers on what a run leaves in its event files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from sb3_ppo_ext import PPOX, AdaptiveKL
from sb3_ppo_ext.monitoring.charts import CHARTS, OPTIONAL_CHARTS
from sb3_ppo_ext.monitoring.tensorboard import METRICS, as_text, write_dashboard, write_hyperparameters, write_pending
from tests.event_files import events, layout, titles


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
