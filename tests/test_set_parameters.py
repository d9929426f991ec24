"""``set_parameters`` brings along all that belongs to the parameters and their optimizer, from a file or a dict."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO

from sb3_ppo_ext import PPOX, AdaptiveClipFraction, AdaptiveKL, Threshold
from tests.environments import Toy

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")  # targets out of reach

SETTINGS: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 1, "device": "cpu"}
REACHED = ("learning_rate", "clip_range", "kl_coef")


def model_of(start: float = 1e-3, **own: Any) -> PPOX:
    """Three controllers, each of which is moved by any measurement at all."""
    law = Threshold(1 + 1e-9, 1.25)
    knobs = {
        "learning_rate": AdaptiveKL(start, 1e-3, law),
        "clip_range": AdaptiveClipFraction(0.2, 0.05, law),
        "kl_coef": AdaptiveKL(0.5, 1e-3, law, every="epoch"),
    }
    return PPOX("MlpPolicy", Toy(), **{**knobs, "normalize_value": True, **SETTINGS, **own})


def reached(model: PPOX) -> dict[str, float]:
    return {name: value for name, value in model.knobs.numbers().items() if name in REACHED}


def parameters_of(model: PPOX, source: str, folder: Path) -> Any:
    if source == "dict":
        return copy.deepcopy(model.get_parameters())
    model.save(folder / "model")
    return folder / "model" if source == "path" else open(folder / "model.zip", "rb")


@pytest.mark.parametrize("source", ["path", "dict", "stream"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_controllers_and_value_statistics_come_with_the_parameters(source: str, tmp_path: Path) -> None:
    first = model_of().learn(96)
    assert all(reached(first)[name] != reached(model_of())[name] for name in REACHED)
    second = model_of(n_steps=64)
    second.set_parameters(parameters_of(first, source, tmp_path))
    assert reached(second) == reached(first)
    assert second.knobs.values.learning_rate == second.policy.optimizer.param_groups[0]["lr"]
    for name in ("mean", "std", "moments"):
        assert torch.equal(getattr(second.policy.value_net, name), getattr(first.policy.value_net, name))
    for model in (first, second):  # and go on alike
        model.n_steps = 32
        model.rollout_buffer = copy.deepcopy(first.rollout_buffer)
        torch.manual_seed(0)
        model.set_random_seed(0)
        model.train()
    assert reached(second) == reached(first)
    for mine, theirs in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_other_settings_and_other_parameters_leave_a_controller_as_it_is() -> None:
    parameters: Any = model_of().learn(96).get_parameters()
    other = model_of(start=2e-3)
    other.set_parameters(parameters)
    assert other.knobs.values.learning_rate == 2e-3 and other.knobs.values.kl_coef != 0.5
    networks = model_of()
    networks.set_parameters({"policy": parameters["policy"]}, exact_match=False)
    assert reached(networks) == reached(model_of())
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        networks.set_parameters({"policy": parameters["policy"]})


def test_plain_ppo_and_ppox_take_each_others_parameters(tmp_path: Path) -> None:
    ppo = PPO("MlpPolicy", Toy(), **SETTINGS).learn(64)
    ppo.save(tmp_path / "ppo")
    model = model_of().learn(96)
    before = reached(model)
    model.set_parameters(tmp_path / "ppo")
    assert reached(model) == before
    model.learn(32)
    plain = model_of(normalize_value=False).learn(64)
    plain.save(tmp_path / "plain")
    sources: list[Any] = [tmp_path / "plain", plain.get_parameters()]
    for parameters in sources:
        ppo.set_parameters(parameters)
        for mine, theirs in zip(plain.policy.parameters(), ppo.policy.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        ppo.learn(32)
