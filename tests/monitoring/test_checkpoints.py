"""Where the last good model goes."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)

from sb3_ppo_ext.monitoring.checkpoints import checkpoint_path


def checkpoints(folder: Path) -> CheckpointCallback:
    return CheckpointCallback(100, str(folder), name_prefix="walker")


def test_beside_the_checkpoints_wherever_the_callback_hides(tmp_path: Path) -> None:
    expected = str(tmp_path / "walker_last_good_640_steps.zip")
    one = checkpoints(tmp_path)
    inside_eval = EvalCallback(gym.make("CartPole-v1"), callback_after_eval=checkpoints(tmp_path))
    hidden: list[BaseCallback] = [
        one,
        CallbackList([StopTrainingOnMaxEpisodes(3), checkpoints(tmp_path)]),
        CallbackList([CallbackList([EveryNTimesteps(10, checkpoints(tmp_path))])]),
        CallbackList([inside_eval]),
    ]
    assert [checkpoint_path(callback, 640) for callback in hidden] == [expected] * 4


@pytest.mark.filterwarnings("ignore:.*Monitor.*:UserWarning")
def test_beside_the_best_model_where_there_are_no_checkpoints(tmp_path: Path) -> None:
    best = EvalCallback(gym.make("CartPole-v1"), best_model_save_path=str(tmp_path / "best"))
    expected = str(tmp_path / "best" / "model_last_good_640_steps.zip")
    assert checkpoint_path(CallbackList([best]), 640) == expected
    both = CallbackList([best, checkpoints(tmp_path)])
    assert checkpoint_path(both, 640) == str(tmp_path / "walker_last_good_640_steps.zip")


def test_nowhere_without_a_folder() -> None:
    none = CallbackList([ConvertCallback(lambda *_: True), EvalCallback(gym.make("CartPole-v1"))])
    assert checkpoint_path(none, 640) is None
