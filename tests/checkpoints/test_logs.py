"""Logs of a resumed run: every point once and no row lost, whatever was written after the checkpoint."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.checkpoints.callbacks import advance_progress_bars
from tests.checkpoints.runs import (
    SETTINGS,
    TIMES,
    StopAt,
    Stopped,
    assert_same,
    episodes,
    every_update,
    points,
    trained,
)
from tests.environments import walk

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")

TOTAL, STOPS = 96, [19, 40, 50, 77]


def made(folder: Path, env: Callable[[], Any] = walk, **options: Any) -> Callable[[], PPOX]:
    return lambda: PPOX("MlpPolicy", env(), seed=1, tensorboard_log=str(folder / "tb"), **SETTINGS, **options)


@pytest.mark.parametrize("log_interval", [1, 2, 4])
def test_tensorboard_has_every_point_of_the_unbroken_run_once(log_interval: int, tmp_path: Path) -> None:
    for name, stops in (("a", []), ("b", STOPS)):
        folder = tmp_path / name
        trained(made(folder), walk, folder, total=TOTAL, stops=stops, log_interval=log_interval)
    expected = points(tmp_path / "a")
    assert points(tmp_path / "b") == expected and expected


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [{name: row[name] for name in row if name not in TIMES} for row in csv.DictReader(file)]


def test_tables_and_lines_are_continued(tmp_path: Path) -> None:
    for name, stops in (("a", []), ("b", STOPS)):
        folder = tmp_path / name

        def make(folder: Path = folder) -> PPOX:
            model = PPOX("MlpPolicy", walk(), seed=1, **SETTINGS)
            model.set_logger(configure(str(folder / "log"), ["csv", "json", "log"]))
            return model

        model, _ = trained(make, walk, folder, total=TOTAL, stops=stops)
        model.logger.close()
    a, b = tmp_path / "a/log", tmp_path / "b/log"
    assert rows(b / "progress.csv") == rows(a / "progress.csv")
    lines = [(path / "progress.json").read_text().splitlines() for path in (a, b)]
    mine, theirs = ([{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in text] for text in lines)
    assert mine == theirs
    assert (b / "log.txt").read_text().count("total_timesteps") == (a / "log.txt").read_text().count("total_timesteps")


def monitored(folder: Path, in_worker: bool = False) -> Callable[[], Any]:
    def env() -> Monitor[Any, Any]:
        return Monitor(walk(), str(folder / "0"))  # which truncates the file when it is made

    return (lambda: SubprocVecEnv([env], "fork")) if in_worker else env


@pytest.mark.parametrize("in_worker", [False, True])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_monitor_files_keep_their_header_and_every_row(in_worker: bool, tmp_path: Path) -> None:
    headers = []
    for name, stops in (("a", []), ("b", STOPS)):
        folder = tmp_path / name
        env = monitored(folder, in_worker)

        def make(folder: Path = folder, env: Callable[[], Any] = env) -> PPOX:
            model = made(folder, env)()
            headers.append((folder / "0.monitor.csv").read_text().splitlines()[0])
            return model

        model, _ = trained(make, env, folder, total=TOTAL, stops=stops)
        model.get_env().close()  # type: ignore[union-attr]
    (_, theirs), (header, mine) = episodes(tmp_path / "a"), episodes(tmp_path / "b")
    assert mine == theirs and len(mine) > 5
    assert header.rstrip() == headers[1]
    times = np.genfromtxt(tmp_path / "b/0.monitor.csv", delimiter=",", skip_header=2)[:, 2]
    assert (np.diff(times) >= 0).all()


def evaluating(folder: Path) -> list[BaseCallback]:
    env = Monitor(walk())
    patience = StopTrainingOnNoModelImprovement(4)
    evaluation = EvalCallback(
        env,
        callback_after_eval=patience,
        n_eval_episodes=2,
        log_path=str(folder),
        best_model_save_path=str(folder),
        verbose=0,
    )
    return [EveryNTimesteps(10, evaluation)] if folder.name.startswith("every") else [evaluation]


@pytest.mark.parametrize("name", ["plain", "every"])
def test_evaluations_best_model_and_patience_go_on(name: str, tmp_path: Path) -> None:
    found = []
    for broken, stops in ((False, []), (True, STOPS)):
        folder = tmp_path / f"{name}{broken}"

        def callbacks(folder: Path = folder) -> list[BaseCallback]:
            made = evaluating(folder)
            evaluation: Any = made[0] if name == "plain" else made[0].callback  # type: ignore[attr-defined]
            evaluation.eval_freq = 10 if name == "plain" else 1
            evaluation.eval_env.seed(3)
            return made

        model, callback = trained(made(folder), walk, folder, total=TOTAL, stops=stops, callbacks=callbacks)
        evaluation: Any = callback.callbacks[0]
        evaluation = evaluation if name == "plain" else evaluation.callback
        file = np.load(folder / "evaluations.npz")
        results = {key: file[key].tolist() for key in file.files}
        score = (evaluation.best_mean_reward, evaluation.last_mean_reward, evaluation.callback.no_improvement_evals)
        best = PPOX.load(folder / "best_model", device="cpu")
        found.append((model, results, score, best))
    (model, results, score, best), (resumed, found_results, found_score, found_best) = found
    assert found_results == results and len(results["timesteps"]) > 3
    assert found_score == score
    assert_same(resumed, model)
    assert found_best.num_timesteps == best.num_timesteps


def test_a_worse_evaluation_of_a_resumed_run_leaves_the_best_model(tmp_path: Path) -> None:
    def callbacks(stop: int) -> CallbackList:
        evaluation = EvalCallback(
            Monitor(walk()), eval_freq=20, n_eval_episodes=1, best_model_save_path=str(tmp_path), verbose=0
        )
        return CallbackList([evaluation, StopAt(stop)])

    first = callbacks(70)
    with pytest.raises(Stopped):
        PPOX("MlpPolicy", walk(), seed=1, **SETTINGS).learn(TOTAL, first, checkpoint=every_update(tmp_path))
    (tmp_path / "best_model.zip").write_bytes(b"the best")
    second = callbacks(10**9)
    resumed = PPOX.resume(tmp_path, walk(), second, device="cpu")
    state = resumed._checkpoints.resumed
    assert state is not None
    state.state["callbacks"][0][1]["plain"]["best_mean_reward"] = 1e9
    resumed.learn()
    assert (tmp_path / "best_model.zip").read_bytes() == b"the best"


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_a_progress_bar_shows_the_whole_run() -> None:
    pytest.importorskip("rich")
    callback = ProgressBarCallback()
    callback.locals, callback.model = {"total_timesteps": 96}, SimpleNamespace(num_timesteps=48)  # type: ignore[assignment]
    callback._on_training_start()
    advance_progress_bars(callback, total=96, done=48)
    bar: Any = callback.pbar
    assert (bar.n, bar.total, bar._prog.tasks[0].total) == (48, 96, 96)
    callback._on_training_end()
