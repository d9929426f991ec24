"""Environments of each kind go on from what was saved, over episodes' ends, as if they had never been interrupted."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from stable_baselines3.common.env_util import make_vec_env

from tests.checkpoints.environments.continuing import continued, goes_on_exactly, interrupted
from tests.checkpoints.environments.new_process import atari

CLASSIC = ["CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"]
TOY_TEXT = ["FrozenLake-v1", "CliffWalking-v1", "Blackjack-v1"]
MUJOCO = ["HalfCheetah-v5", "Ant-v5", "Hopper-v5", "Walker2d-v5", "Humanoid-v5", "Swimmer-v5", "Reacher-v5"]


@pytest.mark.parametrize("task", [*CLASSIC, *TOY_TEXT])
def test_plain_attributes_are_all_there_is(task: str) -> None:
    assert goes_on_exactly(partial(make_vec_env, task, 2), after=300)


# The warm start and positions that lag by one step are in it: Ant and Hopper differ at once without.
@pytest.mark.parametrize("task", [*MUJOCO, "InvertedPendulum-v5", "InvertedDoublePendulum-v5"])
def test_mujoco_goes_on_from_the_whole_of_its_data(task: str) -> None:
    pytest.importorskip("mujoco")
    assert goes_on_exactly(partial(make_vec_env, task, 2), before=30, after=120)


def test_pusher_is_cut_at_the_step_it_would_have_been() -> None:
    pytest.importorskip("mujoco")
    run = interrupted(partial(make_vec_env, "Pusher-v5", 1), before=30, after=100)
    restored, equal = continued(partial(make_vec_env, "Pusher-v5", 1), run)
    assert restored == [] and equal
    cut = [index for index, result in enumerate(run.results) if "TimeLimit.truncated" in result[3][0]]
    ends = [index for index in cut if run.results[index][3][0]["TimeLimit.truncated"] == "True"]
    assert ends == [69]  # its 100th step


@pytest.mark.parametrize("arguments", [{}, {"frameskip": (2, 5)}], ids=["sticky actions", "random frame skip"])
def test_atari_goes_on_with_its_generator(arguments: dict[str, Any]) -> None:
    pytest.importorskip("ale_py")
    assert goes_on_exactly(partial(atari, **arguments), before=25, after=60)


def test_lunar_lander_is_repeated_from_its_last_reset() -> None:
    pytest.importorskip("Box2D")
    assert goes_on_exactly(partial(make_vec_env, "LunarLander-v3", 2), before=150, after=200)


# Its world goes on over resets and orders contacts by what was in it before: a third of its episodes are not the same
# in another world, many of them only after 50 steps.
def test_bipedal_walker_begins_new_episodes_and_says_so() -> None:
    pytest.importorskip("Box2D")
    make = partial(make_vec_env, "BipedalWalker-v3", 2)
    restored, _ = continued(make, interrupted(make, before=150, after=1))
    assert restored.new_episodes
    assert len(restored) == 1 and "BipedalWalker.world goes on over resets" in restored[0]
