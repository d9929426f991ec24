"""What is not part of the saved state is noticed: by repeating recorded steps, or because it cannot be read."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_ppo_ext.checkpoints.environments import restore_environments, save_environments
from sb3_ppo_ext.checkpoints.environments.layers import path_of_class
from tests.checkpoints.environments import kinds
from tests.checkpoints.environments.continuing import continued, goes_on_exactly, interrupted


def dummy(kind: Any, count: int = 2) -> VecEnv:
    return DummyVecEnv([kind] * count)


@pytest.mark.parametrize("kind", [kinds.Counting, kinds.SavesItself, kinds.MadeAnewInReset])
def test_state_that_can_be_read_saved_or_repeated_goes_on(kind: Any) -> None:
    assert goes_on_exactly(partial(dummy, kind))


def test_hidden_state_shows_when_recorded_steps_are_repeated() -> None:
    run = interrupted(partial(dummy, kinds.Hidden))
    restored, _ = continued(partial(dummy, kinds.Hidden), run)
    assert restored.new_episodes
    assert len(restored) == 1 and "Hidden begins new episodes: step 1 of" in restored[0]


def test_what_cannot_be_read_and_goes_on_over_resets_is_not_repeated() -> None:
    restored, _ = continued(partial(dummy, kinds.GoesOnOverResets), interrupted(partial(dummy, kinds.GoesOnOverResets)))
    assert restored.new_episodes
    assert len(restored) == 1 and "GoesOnOverResets.numbers cannot be saved" in restored[0]
    assert "state_dict()" in restored[0]


def test_an_episode_that_was_not_recorded_from_its_reset_on_is_not_repeated() -> None:
    make = partial(dummy, kinds.MadeAnewInReset)
    restored, _ = continued(make, interrupted(make, before=3, prepare=False))
    assert restored.new_episodes and "was not recorded from the start" in restored[0]


def test_a_resumed_episode_can_be_resumed_again() -> None:
    make = partial(dummy, kinds.MadeAnewInReset, 1)
    run = interrupted(make, before=60, after=40)
    env = make()
    assert restore_environments(env, pickle.loads(run.state)) == []
    for action in run.actions[:5]:
        env.step(action)
    again = run._replace(state=pickle.dumps(save_environments(env)), actions=run.actions[5:], results=run.results[5:])
    assert continued(make, again) == ([], True)


def test_a_process_of_its_own_has_generators_of_its_own() -> None:
    assert goes_on_exactly(partial(SubprocVecEnv, [kinds.DrawsFromTheProcess] * 2, "fork"), after=50)


def test_generators_of_this_process_are_left_alone() -> None:
    def drawing() -> VecEnv:  # between the steps, as a policy does
        return kinds.Draws(dummy(kinds.DrawsFromTheProcess))

    run = interrupted(drawing)
    env = drawing()
    np.random.seed(7)
    expected = np.random.RandomState(7).normal()
    assert restore_environments(env, pickle.loads(run.state)) == []  # the steps repeated draw what they drew
    assert np.random.normal() == expected


def sharing() -> VecEnv:
    curriculum = kinds.Curriculum()
    return DummyVecEnv([partial(kinds.Shares, curriculum)] * 2)


def test_what_environments_share_they_share_afterwards() -> None:
    assert goes_on_exactly(sharing)
    env: Any = sharing()
    restore_environments(env, pickle.loads(interrupted(sharing, before=60).state))
    assert env.envs[0].curriculum is env.envs[1].curriculum
    assert env.envs[0].curriculum.level == 120


def test_a_wrapper_goes_on_without_the_attribute_that_cannot_be_saved() -> None:
    def make() -> VecEnv:
        return kinds.HoldsSomething(dummy(kinds.Counting))

    run = interrupted(make)
    env: Any = make()
    restored = restore_environments(env, pickle.loads(run.state))
    assert env.seen == 60 and not restored.new_episodes
    assert len(restored) == 1 and "HoldsSomething.numbers cannot be saved" in restored[0]
    assert run.lines == restored


def test_another_environment_is_an_error_that_names_both_and_changes_nothing() -> None:
    run = interrupted(partial(dummy, kinds.Counting))
    other: Any = dummy(kinds.SavesItself)
    with pytest.raises(ValueError, match=r"(?s)env=.*SavesItself.*checkpoint is of .*Counting"):
        restore_environments(other, pickle.loads(run.state))
    assert other.envs[0].total == 0
    with pytest.raises(ValueError, match="as many environments"):
        restore_environments(dummy(kinds.Counting, 3), pickle.loads(run.state))


def test_steps_that_are_repeated_leave_no_rows_in_a_monitor_file(tmp_path: Path) -> None:
    make = partial(make_vec_env, kinds.Counting, 1, monitor_dir=str(tmp_path / "first"))
    run = interrupted(make, before=60, after=1)
    assert len(load_results(str(tmp_path / "first"))) > 0
    env = make_vec_env(kinds.Counting, 1, monitor_dir=str(tmp_path / "second"))
    assert restore_environments(env, pickle.loads(run.state)) == []
    env.close()
    assert len(load_results(str(tmp_path / "second"))) == 0


def test_an_object_too_deep_to_be_pickled_does_not_end_the_training() -> None:
    env: Any = dummy(kinds.Counting, 1)
    nested: list[Any] = []
    env.envs[0].nested = nested
    for _ in range(100_000):
        nested.append([])
        nested = nested[0]
    lines = save_environments(env)["lines"]
    assert len(lines) == 1 and "Counting.nested cannot be saved" in lines[0]


def test_a_time_limit_is_the_same_whether_rl_zoo3_is_imported_or_not() -> None:
    patched = type("PatchedTimeLimit", (TimeLimit,), {"__module__": "rl_zoo3.gym_patches"})
    env = gym.make("CartPole-v1").unwrapped
    assert path_of_class(patched(env, 5)) == path_of_class(TimeLimit(env, 5)) == "gymnasium.wrappers.common.TimeLimit"
