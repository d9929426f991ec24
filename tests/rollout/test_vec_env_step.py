"""The lean step of wrapped environments: results, statistics, pickles and files are those of ``env.step``."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_ppo_ext.rollout.vec_env_step import lean_step, step_of
from tests.environments import Toy, Walk, walk
from tests.rollout_records import assert_same, plain

Wrap = Callable[[Any], VecEnvWrapper]


class Pictures(gym.Env[Any, Any]):
    """An image, numbers and a whole number at once, in episodes of 5 steps that end or are cut in turn."""

    action_space = spaces.Discrete(3)

    def __init__(self) -> None:
        position, speed = spaces.Box(-np.inf, np.inf, (3,), np.float64), spaces.Box(-np.inf, np.inf, (), np.float32)
        image = spaces.Box(0, 255, (36, 40, 3), np.uint8)
        self.observation_space = spaces.Dict({"image": image, "position": position, "speed": speed})

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.episodes = 0, getattr(self, "episodes", 0) + 1
        return self._observation(), {}

    def _observation(self) -> dict[str, Any]:
        random = self.np_random
        image = random.integers(0, 256, (36, 40, 3), np.uint8)
        return {"image": image, "position": random.normal(1, 2, 3), "speed": np.float32(random.normal())}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        over, even = self.steps == 5, self.episodes % 2 == 0
        return self._observation(), float(action) - 0.7, over and even, over and not even, {"level": self.steps}


MAKERS: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "single": lambda: Monitor(Toy(length=4)),
    "double": lambda: walk("double"),
    "reused": lambda: walk("reused"),
    "image": lambda: Monitor(Toy("image", length=4)),
    "dict": Pictures,
}
normalize = VecNormalize
stack: Wrap = partial(VecFrameStack, n_stack=3)
some_keys: Wrap = partial(VecNormalize, norm_obs_keys=["position", "speed"])
unwatched: Wrap = partial(VecNormalize, norm_obs=False)

# Kind of environment, and its wrappers from the inside out.
STACKS: dict[str, tuple[str, tuple[Wrap, ...]]] = {
    "normalize": ("double", (normalize,)),
    "normalize, float32": ("single", (normalize,)),
    "normalize, a reused buffer": ("reused", (normalize,)),
    "normalize, images": ("image", (normalize,)),
    "monitor": ("double", (VecMonitor,)),
    "monitor, normalize": ("double", (VecMonitor, normalize)),
    "normalize, monitor": ("double", (normalize, VecMonitor)),
    "stack, normalize": ("single", (stack, normalize)),
    "normalize, stack": ("double", (normalize, stack)),
    "stack, transpose": ("image", (stack, VecTransposeImage)),
    "transpose, stack": ("image", (VecTransposeImage, stack)),
    "transpose, normalize": ("image", (VecTransposeImage, normalize)),
    "rewards alone, transpose": ("image", (unwatched, VecTransposeImage)),
    "transpose, rewards alone": ("image", (VecTransposeImage, unwatched)),
    "transpose, stack, normalize": ("image", (VecTransposeImage, stack, normalize)),
    "monitor, stack, normalize": ("double", (VecMonitor, stack, normalize)),
    "dict: every key": ("dict", (normalize,)),
    "dict: some keys, transpose": ("dict", (some_keys, VecTransposeImage)),
    "dict: transpose, some keys": ("dict", (VecTransposeImage, some_keys)),
    "dict: one key, transpose": ("dict", (partial(VecNormalize, norm_obs_keys=["position"]), VecTransposeImage)),
    "twice": ("double", (normalize, partial(VecNormalize, norm_obs=False, gamma=0.5))),
    "clipped": ("double", (partial(VecNormalize, clip_obs=0.3, clip_reward=0.2, gamma=0.9, epsilon=1e-2),)),
    "no rewards": ("double", (partial(VecNormalize, norm_reward=False),)),
    "frozen": ("double", (partial(VecNormalize, training=False),)),
    "nothing": ("dict", (partial(VecNormalize, norm_obs=False, norm_reward=False),)),
}


def wrapped(name: str, count: int = 3) -> VecEnv:
    kind, wrappers = STACKS[name]
    env: VecEnv = DummyVecEnv([MAKERS[kind]] * count)
    env.seed(5)
    for wrap in wrappers:
        env = wrap(env)
    return env


def layers(env: VecEnv) -> Iterator[Any]:
    yield env
    while isinstance(env, VecEnvWrapper):
        env = env.venv
        yield env


def attributes(env: VecEnv) -> list[Any]:
    """What the layers hold after a step; a ``VecNormalize`` also as a pickle and by its methods for users."""
    seen: list[Any] = []
    for layer in layers(env):
        names = ("returns", "episode_returns", "episode_lengths", "episode_count", "actions", "buf_rews", "buf_infos")
        seen.append({name: plain(value) for name, value in vars(layer).items() if name in names})
        if isinstance(layer, VecNormalize):
            seen += [plain(layer.get_original_obs()), plain(layer.get_original_reward())]
            seen.append(without_identities(layer))
        if isinstance(layer, VecFrameStack) and not isinstance(layer.observation_space, spaces.Dict):
            seen.append(plain(layer.stacked_obs.stacked_obs))
    return seen


def without_identities(layer: VecNormalize) -> list[Any]:
    """The pickled state, loaded again: what a user would load, types of the statistics included."""
    state = vars(pickle.load(io.BytesIO(pickle.dumps(layer))))
    statistics = state["obs_rms"] if isinstance(state.get("obs_rms"), dict) else {"": state.get("obs_rms")}
    numbers = [vars(rms) for rms in (*statistics.values(), state["ret_rms"]) if rms is not None]
    kinds = [type(value).__name__ for values in numbers for value in values.values()]
    return [sorted(state), kinds, plain(numbers), plain(state["old_obs"]), plain(state["old_reward"])]


def steps(env: VecEnv, step: Callable[[np.ndarray], Any], count: int = 120) -> Iterator[list[Any]]:
    shape = (env.num_envs,)
    first = plain(env.reset())
    yield [first]
    results = []
    for actions in np.random.default_rng(0).integers(0, 3, (count, *shape)):
        result = step(actions)
        results.append((result, plain(result)))
        yield [plain(result), kinds_of(result), *attributes(env)]
    for result, then in results:
        assert_same(plain(result), then, where="written to by a later step")


def kinds_of(result: Any) -> list[Any]:
    obs, _, _, infos = result
    arrays = list(obs.values()) if isinstance(obs, dict) else [obs]
    flags = [(array.flags.c_contiguous, array.strides) for array in arrays]
    return [str((type(obs).__name__, flags, type(infos).__name__, [list(info) for info in infos]))]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", STACKS)
def test_every_step_is_the_same(name: str, count: int) -> None:
    mine, theirs = wrapped(name, count), wrapped(name, count)
    lean = lean_step(mine)
    assert lean is not None
    length = 120 if STACKS[name][0] in ("single", "double", "reused") else 60
    assert_same(list(steps(mine, lean, length)), list(steps(theirs, theirs.step, length)))  # Toy shares a generator


def test_switches_are_read_at_every_step() -> None:
    results = []
    for lean in (True, False):
        env: Any = wrapped("normalize")
        env.reset()
        step = step_of(env) if lean else env.step
        seen = []
        for number in range(60):
            env.training, env.norm_obs, env.norm_reward = number % 3 != 0, number % 4 != 0, number % 5 != 0
            env.gamma, env.clip_obs = 0.9 + number / 1000, 1 + number / 10
            if number == 30:
                env.obs_rms = RunningMeanStd(shape=(2,))
            seen.append([plain(step(np.ones(3))), *attributes(env)])
        results.append(seen)
    assert_same(*results)


@pytest.mark.parametrize("keywords", [(), ("is_success",)])
def test_monitor_files_have_the_same_rows(keywords: tuple[str, ...], tmp_path: Path) -> None:
    rows = []
    for name in ("lean", "sb3"):
        env: Any = VecMonitor(DummyVecEnv([walk] * 3), str(tmp_path / name), info_keywords=keywords)
        env.seed(1)
        list(steps(env, step_of(env) if name == "lean" else env.step, 100))
        env.close()
        lines = (tmp_path / f"{name}.monitor.csv").read_text().splitlines()[1:]
        rows.append([line.split(",")[:2] + line.split(",")[3:] for line in lines])  # without the time
    assert rows[0] == rows[1] and len(rows[0]) > 20


class Other(VecNormalize):
    pass


class Passing(VecEnvWrapper):
    """A user's wrapper: rewards are doubled."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, 2 * rewards, dones, infos


class OwnStatistics(RunningMeanStd):
    def update(self, arr: np.ndarray) -> None:
        self.mean = self.mean + 1


def test_a_layer_of_a_user_is_stepped_as_it_is_below_lean_ones() -> None:
    assert lean_step(Other(DummyVecEnv([Walk]))) is None
    assert lean_step(Passing(DummyVecEnv([Walk]))) is None
    results = []
    for lean in (True, False):
        env = VecNormalize(Passing(VecMonitor(DummyVecEnv([walk] * 2))))
        env.seed(3)
        results.append(list(steps(env, step_of(env) if lean else env.step, 40)))
    assert_same(*results)


@pytest.mark.parametrize("replaced", ["of the environment", "by another class", "during a rollout"])
def test_statistics_of_a_user_are_called(replaced: str) -> None:
    env: Any = VecNormalize(DummyVecEnv([Walk] * 2))
    env.reset()
    step = step_of(env)
    if replaced == "of the environment":
        env.obs_rms.update = lambda arr: setattr(env.obs_rms, "mean", env.obs_rms.mean + 1)
    else:
        env.obs_rms = OwnStatistics(shape=(2,))
    assert lean_step(env) is None
    before = env.obs_rms.mean.copy()
    (step if replaced == "during a rollout" else step_of(env))(np.zeros(2))
    np.testing.assert_array_equal(env.obs_rms.mean, before + 1)
