"""A model made or loaded while another learns leaves that one's random streams alone; its own wait until it learns."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from sb3_ppo_ext import PPOX
from tests.environments import Periodic, Toy

SETTINGS: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "device": "cpu", "compile": False}


def model_of(seed: int | None = 1, **own: Any) -> PPOX:
    return PPOX("MlpPolicy", Periodic(), seed=seed, **{**SETTINGS, **own})


def parameters(model: PPOX) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


class Each(BaseCallback):
    """Does something now and then."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def _on_step(self) -> bool:
        if self.n_calls % 24 == 0:
            self.act()
        return True


def drawn() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(1).item()


class Duel(gym.Env[Any, Any]):
    """Its opponent is loaded anew for every game."""

    observation_space, action_space = spaces.Box(-9, 9, (2,), np.float32), spaces.Box(-50, 50, (1,), np.float32)

    def __init__(self, path: Path) -> None:
        self.path, self.steps = path, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        self.opponent = PPOX.load(self.path)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.opponent.predict(np.zeros(2, np.float32))
        return np.zeros(2, np.float32), 1.0, self.steps >= 16, False, {}


def test_the_noise_of_a_learner_does_not_repeat_when_its_opponent_is_loaded(tmp_path: Path) -> None:
    model_of(3).learn(32).save(tmp_path / "opponent")
    taken: list[float] = []

    class Actions(BaseCallback):
        def _on_step(self) -> bool:
            taken.append(float(self.locals["actions"][0, 0]))
            return True

    PPOX("MlpPolicy", Duel(tmp_path / "opponent"), seed=0, learning_rate=1e-12, **SETTINGS).learn(160, Actions())
    assert len(set(taken)) == len(taken) == 160


def make_in_vain() -> None:
    with pytest.raises(ValueError, match="refused"):
        PPOX(Refused, Periodic(), seed=4, **SETTINGS)


class Refused(ActorCriticPolicy):
    """Fails when the generators have been seeded already."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ValueError("refused")


def actions(folder: Path) -> dict[str, Callable[[], object]]:
    """What a callback may do without a trace in the learner. Those of a seeded model draw only for themselves."""
    model_of(3, use_sde=True).learn(32).save(folder / "seeded")
    kept = model_of(5)
    return {
        "load": lambda: PPOX.load(folder / "seeded"),
        "load with another seed": lambda: PPOX.load(folder / "seeded", seed=9),
        "load with an environment": lambda: PPOX.load(folder / "seeded", env=Periodic()),
        "make": lambda: model_of(4),
        "make in vain": make_in_vain,
        "load and learn": lambda: PPOX.load(folder / "seeded", env=Periodic()).learn(32),
        "make and learn": lambda: model_of(4).learn(32),
        "save": lambda: kept.save(folder / "other"),
        "set_parameters": lambda: kept.set_parameters(kept.get_parameters()),
    }


NAMES = ("load", "load with another seed", "load with an environment", "make", "make in vain", "load and learn")


@pytest.mark.parametrize("name", [*NAMES, "make and learn", "save", "set_parameters"])
def test_a_seeded_model_leaves_no_trace_in_the_one_that_learns(name: str, tmp_path: Path) -> None:
    act = actions(tmp_path)[name]
    alone = model_of(0).learn(96)
    after = drawn()
    beside = model_of(0).learn(96, callback=Each(act))
    assert torch.equal(parameters(alone), parameters(beside))
    assert drawn() == after


def test_what_was_loaded_while_another_learned_continues_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    straight = model_of().learn(64)
    straight.save(tmp_path / "half")
    straight.learn(64, reset_num_timesteps=False)
    loaded: list[PPOX] = []
    model_of(0).learn(96, callback=Each(lambda: loaded.append(PPOX.load(tmp_path / "half", env=Periodic()))))
    loaded[-1].save(tmp_path / "again")  # with the streams it keeps
    resume: list[Callable[[], PPOX]] = [
        lambda: loaded[0],
        lambda: PPOX.load(tmp_path / "again", env=Periodic()),
    ]
    for resumed in resume:
        model = resumed().learn(64, reset_num_timesteps=False)
        assert torch.equal(parameters(model), parameters(straight))


def test_what_was_made_while_another_learned_trains_as_when_made_alone() -> None:
    alone = model_of(4).learn(64)
    made: list[PPOX] = []
    model_of(0).learn(32, callback=Each(lambda: made.append(model_of(4))))
    drawn()
    assert torch.equal(parameters(made[0].learn(64)), parameters(alone))


def test_a_model_trained_in_turns_within_another_goes_on_with_its_own_streams() -> None:
    alone = model_of(4).learn(64).learn(64, reset_num_timesteps=False)
    made: list[PPOX] = []

    def turn() -> None:
        made[:] = made or [model_of(4)]
        made[0].learn(64, reset_num_timesteps=False)

    model_of(0).learn(48, callback=Each(turn))
    assert made[0].num_timesteps == 128
    assert torch.equal(parameters(made[0]), parameters(alone))


def test_saving_does_not_set_the_streams_back(tmp_path: Path) -> None:
    def trained(save: bool) -> PPOX:
        model = model_of().learn(32)
        if save:
            model.save(tmp_path / "model")
        drawn()
        return model.learn(32)

    assert torch.equal(parameters(trained(True)), parameters(trained(False)))


def test_seeding_a_model_anew_drops_the_streams_it_kept() -> None:
    made: list[PPOX] = []
    model_of(0).learn(32, callback=Each(lambda: made.append(model_of(4))))
    expected = model_of(4)
    for model in (expected, made[0]):
        model.set_random_seed(7)
        model.learn(32)
    assert torch.equal(parameters(made[0]), parameters(expected))


def test_unseeded_models_made_while_another_learns_differ_from_each_other() -> None:
    made: list[PPOX] = []
    model_of(0).learn(64, callback=Each(lambda: made.append(PPOX("MlpPolicy", Toy(), **SETTINGS))))
    assert not torch.equal(*(parameters(model) for model in made[:2]))
