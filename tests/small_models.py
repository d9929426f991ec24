"""A small model for what does not depend on its size, and the comparison of two models' parameters."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3 import PPO

from sb3_ppo_ext import PPOX
from tests.environments import Toy

SETTINGS: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


def model_with(**own: Any) -> PPOX:
    return PPOX("MlpPolicy", Toy(action="box"), **{**SETTINGS, **own})


def assert_same_parameters(mine: PPO, theirs: PPO) -> None:
    expected = theirs.policy.state_dict()
    assert mine.policy.state_dict().keys() == expected.keys()
    for name, tensor in mine.policy.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)
