"""Gymnasium's vector environments as VecEnvs: what is refused, and all that is not a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import NormalizeObservation
from stable_baselines3.common.monitor import Monitor, load_results

from sb3_ppo_ext.vec_env import GymnasiumVecEnv
from tests.environments import Walk, sync, walk


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: RestartsAll(sync(3)), "ignores .*reset_mask.*vectorization_mode"),
        (lambda: NormalizeObservation(sync(3)), "restart one environment alone.*VecNormalize"),
        (lambda: AsyncVectorEnv([walk], shared_memory=False, context="fork"), "NEXT_STEP without shared memory"),
        (lambda: Walk(), "env=.*VectorEnv is needed"),
        (lambda: SyncVectorEnv([lambda: Texts()]), "observation_space=.*Text.*is needed"),
        (lambda: unknown_mode(), "autoreset_mode'. is None"),
    ],
)
def test_what_cannot_be_exact_is_refused_with_the_remedy(make: Callable[[], Any], complaint: str) -> None:
    env = make()
    try:
        with pytest.raises(ValueError, match=complaint):
            GymnasiumVecEnv(env)
    finally:
        env.close()


class Texts(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Text(3)


def unknown_mode() -> SyncVectorEnv:
    env = sync(2)
    del env.metadata["autoreset_mode"]
    return env


class RestartsAll(gym.vector.VectorWrapper[Any, Any, Any]):
    """Restarts everything, whatever the mask says."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.env.reset(seed=seed)


class Deaf(gym.vector.VectorWrapper[Any, Any, Any]):
    """Restarts everything, whatever the mask says, and always from the same place: no first look shows it."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        _, info = self.env.reset(seed=0)  # so that the three do not end in one step
        for env in self.env.unwrapped.envs:  # type: ignore[attr-defined]
            env.unwrapped.place[:] = 0.0
        return np.zeros((self.num_envs, 2)), info


def test_an_environment_found_to_ignore_masks_later_is_stopped_before_its_row_is_used() -> None:
    ours = GymnasiumVecEnv(Deaf(sync(3)))
    ours.reset()
    with pytest.raises(ValueError, match="changed environments outside"):
        for _ in range(9):
            *_, done, _ = ours.step(np.array([0, 1, 2]))
            assert not done.any()


@pytest.mark.parametrize(
    ("arguments", "options", "complaint"),
    [
        (("CartPole-v1", 0), {}, "n_envs=0"),
        ((sync(2), 3), {}, "n_envs=3: the environment has 2"),
        ((sync(2),), {"vector_kwargs": {}}, "vector_kwargs: arguments of gym.make_vec"),
    ],
)
def test_arguments_that_contradict_each_other(arguments: Any, options: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        GymnasiumVecEnv(*arguments, **options)


def test_attributes_and_methods_reach_the_sub_environments() -> None:
    ours = GymnasiumVecEnv(sync(3))
    ours.set_attr("pull", 7.0, indices=[0, 2])
    assert ours.get_attr("pull") == [7.0, 0.0, 7.0] and ours.get_attr("pull", 1) == [0.0]
    assert ours.env_method("doubled", 4, indices=1) == [8]
    assert ours.has_attr("pull") and not ours.has_attr("push")
    assert ours.env_is_wrapped(TimeLimit) == [True] * 3 == ours.env_is_wrapped(Monitor)
    assert ours.env_is_wrapped(gym.wrappers.ClipAction, 0) == [False]
    cart_poles = GymnasiumVecEnv("CartPole-v1", 2)
    assert cart_poles.get_attr("gravity") == [9.8, 9.8]
    cart_poles.set_attr("gravity", 1.0)
    assert cart_poles.get_attr("gravity", [0]) == [1.0]
    with pytest.raises(ValueError, match=r"set_attr\('gravity'\), indices=\[1\].*all at once"):
        cart_poles.set_attr("gravity", 2.0, indices=1)
    with pytest.raises(AttributeError, match="no sub-environments"):
        cart_poles.env_method("reset")


def test_attributes_and_methods_reach_the_processes() -> None:
    ours = GymnasiumVecEnv(AsyncVectorEnv([walk, walk], context="fork"))
    ours.set_attr("pull", 7.0)
    assert ours.get_attr("pull") == [7.0, 7.0]
    assert ours.env_method("doubled", 4) == [8, 8]
    ours.close()


def test_pictures_are_tiled() -> None:
    ours = GymnasiumVecEnv(SyncVectorEnv([lambda: Walk(render_mode="rgb_array")] * 2))
    ours.reset()
    assert ours.render_mode == "rgb_array" and ours.get_attr("metadata")[0] == Walk.metadata
    picture = ours.render()
    assert picture is not None and picture.shape == (8, 4, 3)


def test_options_are_used_once_and_are_the_same_for_all() -> None:
    ours = GymnasiumVecEnv("CartPole-v1", 4)
    ours.set_options({"low": 0.2, "high": 0.3})
    assert np.asarray(ours.reset()).min() >= 0.2
    assert np.abs(np.asarray(ours.reset())).max() <= 0.05
    ours.set_options([{"low": 0.1}, {}, {}, {}])
    with pytest.raises(ValueError, match="the same options for all"):
        ours.reset()


def test_episodes_are_lines_in_the_monitor_file(tmp_path: Path) -> None:
    ours = GymnasiumVecEnv(sync(2), seed=0, monitor_file=str(tmp_path / "0"))
    ours.reset()
    ended = [info["episode"] for _ in range(25) for info in ours.step(np.array([0, 2]))[3] if "episode" in info]
    ours.close()
    table = load_results(str(tmp_path))
    assert table["r"].tolist() == [episode["r"] for episode in ended]
    assert table["l"].tolist() == [episode["l"] for episode in ended]
