"""A run that is stopped and resumed ends as one that never was, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_ppo_ext import PPOX, AdaptiveKL
from sb3_ppo_ext.checkpoints.reading import required
from sb3_ppo_ext.engines.rows import RowFamily
from sb3_ppo_ext.saving import random_state, restore_random_state
from tests.checkpoints.runs import SETTINGS, Noisy, Steps, StopAt, Stopped, assert_same, every_update, trained
from tests.environments import walk

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")  # targets out of reach

TOTAL = 96
STOPS = [17, 33, 50, 70]  # a step after an update, and in the middle of rollouts


def toys(observation: str = "vector", action: str = "discrete", wrap: Callable[[VecEnv], VecEnv] | None = None) -> Any:
    def made() -> VecEnv:
        env = DummyVecEnv([lambda: Noisy(observation, action, 7), lambda: Noisy(observation, action, 10)])
        return env if wrap is None else wrap(env)

    return made


def normalized(env: VecEnv) -> VecEnvWrapper:
    return VecNormalize(env)


rate: Any = {"adaptive_kl": {"start": 1e-3, "target": 1e-3, "every": "minibatch"}}
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "controllers and schedules": (
        walk,
        {"learning_rate": rate, "ent_coef": "linear:0.1:0", "clip_range": "cosine:0.3:0.1"},
    ),
    "horizon": (toys(), {"learning_rate": "linear:1e-3:1e-4:horizon=200", "kl_coef": AdaptiveKL(0.1, 1e-3)}),
    "Box, PopArt": (toys(action="box"), {"normalize_value": True, "recompute_advantage": True}),
    "gSDE": (toys(action="box"), {"use_sde": True, "sde_sample_freq": 3}),
    "Dict": (toys("dict", "multidiscrete"), {"target_kl": 1e-4}),
    "MultiBinary, advantages of the rollout": (toys("double", "multibinary"), {"advantage_scope": "rollout"}),
    "images": (toys("image"), {"n_steps": 8}),
    "VecNormalize": (toys(action="box", wrap=normalized), {}),
    "VecFrameStack, VecMonitor": (toys(wrap=lambda env: VecMonitor(VecFrameStack(env, 3))), {}),
    "VecNormalize over VecFrameStack": (
        toys(wrap=lambda env: VecNormalize(VecFrameStack(env, 2))),
        {"clip_range_vf": 0.2},
    ),
}


def steps() -> list[BaseCallback]:
    return [Steps()]


def rewards(callbacks: CallbackList) -> list[list[float]]:
    found = callbacks.callbacks[0]
    assert isinstance(found, Steps)
    return found.rewards


def policy_for(env: Any) -> str:
    shape = getattr(env.observation_space, "shape", None)
    return "MultiInputPolicy" if shape is None else "CnnPolicy" if len(shape) == 3 else "MlpPolicy"


@pytest.mark.parametrize("case", list(CASES))
def test_a_seeded_run_stopped_after_every_update_ends_as_an_unbroken_one(case: str, tmp_path: Path) -> None:
    env, options = CASES[case]

    def make() -> PPOX:
        vec_env = env()
        return PPOX(policy_for(vec_env), vec_env, seed=1, **{**SETTINGS, **options})

    envs = make().n_envs
    total, stops = envs * TOTAL, [envs * stop for stop in STOPS]
    unbroken, theirs = trained(make, env, tmp_path / "a", total=total, stops=[], callbacks=steps)
    broken, mine = trained(make, env, tmp_path / "b", total=total, stops=stops, callbacks=steps)
    assert_same(broken, unbroken)
    assert rewards(mine) == rewards(theirs)


def test_an_unseeded_run_does_too(tmp_path: Path) -> None:
    begun = random_state(0)

    def make() -> PPOX:
        restore_random_state(begun)
        env = walk()
        env.reset(seed=7)  # where another would ask the system for a seed
        return PPOX("MlpPolicy", env, **SETTINGS)

    unbroken, theirs = trained(make, walk, tmp_path / "a", total=TOTAL, stops=[], callbacks=steps)
    broken, mine = trained(make, walk, tmp_path / "b", total=TOTAL, stops=STOPS, callbacks=steps)
    assert_same(broken, unbroken)
    assert rewards(mine) == rewards(theirs)


@pytest.mark.usefixtures("uncompiled")
def test_a_run_by_graphs_does_too(tmp_path: Path) -> None:
    def make() -> PPOX:
        return PPOX("MlpPolicy", walk(), seed=1, **{**SETTINGS, "compile": True})

    unbroken, theirs = trained(make, walk, tmp_path / "a", total=TOTAL, stops=[], callbacks=steps)
    broken, mine = trained(make, walk, tmp_path / "b", total=TOTAL, stops=STOPS, callbacks=steps)
    assert broken._engines.engine is not None
    assert_same(broken, unbroken)
    assert rewards(mine) == rewards(theirs)


@pytest.mark.parametrize("decided", [True, False])
def test_what_auto_has_decided_stays(decided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> PPOX:
        return PPOX("MlpPolicy", walk(), seed=1, **{**SETTINGS, "compile": "auto"})

    class Seen(BaseCallback):
        def _on_step(self) -> bool:
            assert isinstance(self.model, PPOX) and self.model._engines.compiles is decided
            return True

    def savings(first: bool) -> Any:  # what the resumed run would decide is the opposite
        return lambda *_: (1e9, 1.0) if first == decided else (0.0, 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(RowFamily, "compiled", lambda *_: None)  # so that nothing is compiled
        patch.setattr(RowFamily, "savings", savings(True))
        make().learn(32, Seen(), checkpoint=every_update(tmp_path))
        patch.setattr(RowFamily, "savings", savings(False))
        PPOX.resume(tmp_path, walk(), Seen(), total_timesteps=64, device="cpu").learn()


def test_attributes_that_a_callback_changes_are_as_it_left_them(tmp_path: Path) -> None:
    class Curriculum(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 20:
                self.training_env.set_attr("pull", 0.5)
                assert isinstance(self.model, PPOX)
                self.model.ent_coef = 0.05
                self.model.gamma = 0.9
            return True

    def make() -> PPOX:
        return PPOX("MlpPolicy", walk(), seed=1, **SETTINGS)

    def callbacks() -> list[BaseCallback]:
        return [Steps(), Curriculum()]

    unbroken, theirs = trained(make, walk, tmp_path / "a", total=TOTAL, stops=[], callbacks=callbacks)
    broken, mine = trained(make, walk, tmp_path / "b", total=TOTAL, stops=[40, 70], callbacks=callbacks)
    assert broken.gamma == 0.9
    assert_same(broken, unbroken)
    assert rewards(mine) == rewards(theirs)


def test_a_learn_after_the_first_is_resumed_as_well(tmp_path: Path) -> None:
    def run(stop: int, folder: Path) -> PPOX:
        model = PPOX("MlpPolicy", walk(), seed=1, ent_coef="linear:0.1:0", **SETTINGS)
        model.learn(32, [StopAt(10**9)], checkpoint=every_update(folder))
        second: Any = {"reset_num_timesteps": False, "checkpoint": every_update(folder)}
        try:
            model.learn(64, [StopAt(stop)], **second)
        except Stopped:
            model = PPOX.resume(folder, walk(), [StopAt(10**9)], device="cpu").learn(64)
        return model

    unbroken, broken = run(10**9, tmp_path / "a"), run(70, tmp_path / "b")
    assert broken.num_timesteps == 96
    assert_same(broken, unbroken)
    broken.learn(16, [StopAt(10**9)], reset_num_timesteps=False, checkpoint=every_update(tmp_path / "b"))
    assert required(tmp_path / "b").manifest["step"] == 112


def test_statistics_go_on_where_a_callback_has_ended_the_run_in_a_step(tmp_path: Path) -> None:
    model = PPOX("MlpPolicy", toys(action="box", wrap=normalized)(), seed=1, **SETTINGS)
    model.learn(64, lambda *_: model.num_timesteps < 40, checkpoint=every_update(tmp_path))
    theirs, mine = model.env, toys(action="box", wrap=normalized)()
    PPOX.resume(tmp_path, mine, device="cpu", total_timesteps=96)
    assert isinstance(theirs, VecNormalize) and isinstance(mine, VecNormalize)
    assert mine.obs_rms.mean.tolist() == theirs.obs_rms.mean.tolist()  # type: ignore[attr-defined]  # no dict
    assert mine.ret_rms.count == theirs.ret_rms.count > 10
