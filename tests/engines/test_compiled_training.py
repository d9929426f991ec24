"""Whole trainings with compile=True: the same draws, episodes and learning as eager, and the same answers to faults."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.monitoring.divergence import DivergedError
from tests.cases import CASES as ALL
from tests.cases import TwoRates
from tests.environments import Periodic, Toy
from tests.traced_graphs import trace_only

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")

SETTINGS: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}

GSDE = "minibatch controller, two rates, gSDE"
COMPILED = "everything"  # whose update is that of ``test_compiled``, so that one library does for both
CASES: dict[str, tuple[str, str, Any, dict[str, Any]]] = {
    COMPILED: ALL[COMPILED],
    "discrete": ("vector", "discrete", "MlpPolicy", {}),
    "gSDE": ("vector", "box", TwoRates, {**ALL[GSDE][3], "sde_sample_freq": 4}),
    "dict, multibinary": ("dict", "multibinary", "MultiInputPolicy", {"surrogate": "spo"}),
}


def model_of(name: str, *, compile: bool) -> PPOX:
    observation, action, policy, options = CASES[name]
    env = DummyVecEnv([partial(Toy, observation, action, length) for length in (7, 10)])  # cut by their time limits
    return PPOX(policy, env, compile=compile, **{**SETTINGS, **options})


class Rows(BaseCallback):
    """Copies of what the first rollout collected."""

    rows: dict[str, Any]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        if self.num_timesteps == 64:
            self.rows = {name: np.copy(getattr(buffer, name)) for name in ("actions", "rewards", "values", "log_probs")}


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("name", CASES)
def test_the_first_rollout_is_the_eager_one(name: str) -> None:
    collected = []
    for compile in (False, True):
        callback, model = Rows(), model_of(name, compile=compile)
        if compile and name != COMPILED:
            trace_only(model)
        model.learn(64, callback)
        collected.append(callback.rows)
    eager, compiled = collected
    for key, array in eager.items():
        # Rewards too, to which the values of what the time limits cut are added.
        np.testing.assert_allclose(compiled[key], array, rtol=1e-5, atol=1e-5, err_msg=key)
    if name in ("discrete", "dict, multibinary"):
        np.testing.assert_array_equal(compiled["actions"], eager["actions"])


@pytest.mark.usefixtures("uncompiled")
def test_a_nan_in_the_parameters_is_caught_before_the_environment_sees_it() -> None:
    errors = []
    for compile in (False, True):
        model = model_of("discrete", compile=compile).learn(64)
        with torch.no_grad():
            next(model.policy.parameters()).fill_(float("nan"))
        with pytest.raises(DivergedError) as caught:
            model.learn(64)
        errors.append(str(caught.value))
        assert model.num_timesteps == 0  # of this learn(): no step was taken
    assert errors[0] == errors[1]


class Stop(BaseCallback):
    """Ctrl-C in the middle of the second rollout."""

    def _on_step(self) -> bool:
        if self.num_timesteps > 80:
            raise KeyboardInterrupt
        return True


def periodic(compile: bool) -> PPOX:
    return PPOX("MlpPolicy", Periodic(), compile=compile, **SETTINGS)


@pytest.mark.usefixtures("uncompiled")
def test_an_interrupted_model_saves_loads_and_goes_on(tmp_path: Path) -> None:
    model = model_of("discrete", compile=True)
    with pytest.raises(KeyboardInterrupt):
        model.learn(256, Stop())
    steps = [state["step"].item() for state in model.policy.optimizer.state.values()]
    assert set(steps) == {4.0}  # 2 epochs of 2 minibatches of one rollout
    model.save(tmp_path / "model")
    loaded = PPOX.load(tmp_path / "model", env=model.get_env())
    assert loaded.learn(64).num_timesteps == 64


@pytest.mark.usefixtures("uncompiled")
def test_loading_and_continuing_is_never_having_stopped(tmp_path: Path) -> None:
    whole = periodic(True).learn(32)
    whole.save(tmp_path / "model")
    whole.learn(32, reset_num_timesteps=False)
    loaded = PPOX.load(tmp_path / "model", env=Periodic())
    loaded.learn(32, reset_num_timesteps=False)
    for name, tensor in whole.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], tensor), name


@pytest.mark.usefixtures("uncompiled")
def test_replaced_parts_of_the_policy_are_noticed() -> None:
    models = []
    for compile in (False, True):
        model = model_of("discrete", compile=compile).learn(64)
        model.policy.mlp_extractor.value_net[1] = torch.nn.ReLU()
        for parameter in model.policy.action_net.parameters():
            parameter.requires_grad_(False)
        before = model.policy.action_net.get_parameter("weight").clone()
        models.append(model.learn(64))
        assert torch.equal(model.policy.action_net.get_parameter("weight"), before)
    for name, tensor in models[0].policy.state_dict().items():
        torch.testing.assert_close(models[1].policy.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)
