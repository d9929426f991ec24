"""What is refused of environments, with the class or wrapper that takes its place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.vec_env import GymnasiumVecEnv
from tests.environments import Toy, needs_envpool


def envpool_cart_poles() -> Any:
    import envpool

    return envpool.make("CartPole-v1", env_type="gymnasium", num_envs=2)


GIVEN = [
    (lambda: gym.make_vec("CartPole-v1", 2), "GymnasiumVecEnv"),
    (lambda: RecordEpisodeStatistics(SyncVectorEnv([Toy])), "GymnasiumVecEnv"),
    pytest.param(envpool_cart_poles, "EnvPoolVecEnv", marks=needs_envpool),
    pytest.param(lambda: RecordEpisodeStatistics(envpool_cart_poles()), "EnvPoolVecEnv", marks=needs_envpool),
    (lambda: [Toy, Toy], r"DummyVecEnv\(functions\)"),
    (lambda: Toy, "make_vec_env"),
    (lambda: lambda: Toy(), "make_vec_env"),
]


@pytest.mark.parametrize(("make", "remedy"), GIVEN)
def test_what_is_no_environment_of_ppo_is_refused_with_what_makes_it_that(
    make: Callable[[], Any], remedy: str, tmp_path: Path
) -> None:
    model = PPOX("MlpPolicy", Toy(), n_steps=8, batch_size=8, compile=False)
    model.save(tmp_path / "model")
    for use in (
        lambda env: PPOX("MlpPolicy", env),
        model.set_env,
        lambda env: PPOX.load(tmp_path / "model", env=env),
    ):
        with pytest.raises(ValueError, match=f"^env=.*{remedy}"):
            use(make())


@needs_envpool
@pytest.mark.parametrize("wrap", [lambda env: env, RecordEpisodeStatistics])
def test_envpool_s_own_object_is_refused_by_the_other_wrapper_too(wrap: Any) -> None:
    with pytest.raises(ValueError, match="EnvPoolVecEnv"):
        GymnasiumVecEnv(wrap(envpool_cart_poles()))


class Shifted(Toy):
    """An environment of these spaces, which refuses actions outside."""

    def __init__(self, action: Any = None, observation: Any = None) -> None:
        super().__init__()
        self.action_space = action or self.action_space
        self.observation_space = observation or self.observation_space

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        return super().step(action)


SHIFTED = [
    (spaces.Discrete(3, start=-1), None, r"action_space=.*start is -1, .*action \+ -1, gymnasium.spaces.Discrete\(3\)"),
    (
        spaces.MultiDiscrete([2, 3], start=[0, 1]),
        None,
        r"start is \[0, 1\].*gymnasium.spaces.MultiDiscrete\(\[2, 3\]\)",
    ),
    (None, spaces.Discrete(4, start=1), r"observation_space=.*start is 1, .*gymnasium.spaces.Discrete\(4\)"),
    (None, spaces.Dict({"a": spaces.Discrete(4, start=2)}), r"observation_space\['a'\]=.*start is 2, "),
]


@pytest.mark.parametrize(("action", "observation", "complaint"), SHIFTED)
def test_a_discrete_space_that_starts_elsewhere_than_at_zero_is_refused(
    action: Any, observation: Any, complaint: str
) -> None:
    policy = "MultiInputPolicy" if isinstance(observation, spaces.Dict) else "MlpPolicy"

    def make() -> Shifted:
        return Shifted(action, observation)

    for build in (
        lambda: PPOX(policy, make()),
        lambda: PPOX(policy, DummyVecEnv([make])),
        lambda: GymnasiumVecEnv(SyncVectorEnv([make])),
    ):
        with pytest.raises(ValueError, match=complaint):
            build()


@pytest.mark.parametrize(
    ("space", "func", "from_zero"),
    [
        (spaces.Discrete(3, start=-1), lambda action: action + -1, spaces.Discrete(3)),
        (spaces.MultiDiscrete([2, 3], start=[0, 1]), lambda action: action + [0, 1], spaces.MultiDiscrete([2, 3])),  # noqa: RUF005
    ],
)
def test_the_wrapper_that_is_named_gives_the_environment_its_actions(space: Any, func: Any, from_zero: Any) -> None:
    def make() -> Any:
        return gym.wrappers.TransformAction(Shifted(space), func, from_zero)

    for env in (DummyVecEnv([make]), GymnasiumVecEnv(SyncVectorEnv([make]))):
        PPOX("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, compile=False).learn(32)


def test_a_model_trained_on_such_a_space_may_be_loaded_to_predict(tmp_path: Path) -> None:
    PPO("MlpPolicy", Shifted(spaces.Discrete(3, start=-1))).save(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"predict\(\) gives actions counted from 0; add its start, -1"):
        model = PPOX.load(tmp_path / "model")
    assert model.predict(np.zeros(4, np.float32))[0] in (0, 1, 2)
    with pytest.raises(ValueError, match="start is -1"):
        model.set_env(Shifted(spaces.Discrete(3, start=-1)))


@pytest.mark.filterwarnings("ignore:.*Using the latest versioned environment:UserWarning")
def test_an_id_is_whatever_make_vec_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toys_of_this_test.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('room/Registered-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = gym.make_vec("CartPole-v1", 3, vectorization_mode="sync", max_episode_steps=7)
    assert made.spec is not None
    for name in ("CartPole", "toys_of_this_test:room/Registered-v0", "room/Registered", gym.spec("CartPole-v1")):
        observation = GymnasiumVecEnv(name, 2).reset()
        assert isinstance(observation, np.ndarray) and observation.shape == (2, 4)
    again = GymnasiumVecEnv(made.spec)
    assert again.num_envs == 3 and GymnasiumVecEnv(made.spec, 2).num_envs == 2
    again.reset()
    assert all(again.step(np.arange(3) % 2)[2].all() == (step == 7) for step in range(1, 8))
    del sys.modules["toys_of_this_test"], gym.registry["room/Registered-v0"]


def test_functions_and_classes_are_refused_with_the_vector_environment_that_takes_them() -> None:
    for env in ([Toy, Toy], Toy):
        with pytest.raises(ValueError, match=r"SyncVectorEnv\(functions\)"):
            GymnasiumVecEnv(env, 2)  # type: ignore[arg-type]
