"""``collect_rollouts`` and ``train`` without ``learn``: they work, or say what is missing and how to give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from torch import Tensor

from sb3_ppo_ext import PPOX
from tests.environments import Toy

SETTINGS: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


def model_of(**options: Any) -> PPOX:
    return PPOX("MlpPolicy", Toy(), compile=False, **{**SETTINGS, **options})


def filled(model: PPOX, *, ended: bool) -> PPOX:
    """A user's loop: the buffer is filled and the advantages are computed, and nothing else is set."""
    buffer = model.rollout_buffer
    buffer.reset()
    generator = torch.Generator().manual_seed(0)
    for step in range(buffer.buffer_size):
        observation = torch.randn(1, 4, generator=generator)
        with torch.no_grad():
            action, value, log_prob = model.policy(observation)
        buffer.add(observation.numpy(), action.numpy()[:, None], np.ones(1), np.full(1, step == 0), value, log_prob)
    buffer.compute_returns_and_advantage(torch.full((1, 1), 5.0), np.full(1, ended))
    return model


def parameters(model: PPO) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


def test_training_alone_needs_no_logger_and_records_what_it_did() -> None:
    model = filled(model_of(), ended=False)
    model.train()
    assert model.logger.name_to_value["train/n_updates"] == 2
    model.dump_logs()


def test_recomputing_advantages_needs_nothing_more_where_every_episode_has_ended() -> None:
    alone, informed = (filled(model_of(recompute_advantage=True), ended=True) for _ in range(2))
    informed._last_obs, informed._last_episode_starts = np.full((1, 4), 9.0, np.float32), np.ones(1, bool)
    for model in (alone, informed):
        np.random.seed(0)
        model.train()
    assert torch.equal(parameters(alone), parameters(informed))


@pytest.mark.parametrize("argument", [{"recompute_advantage": True}, {"value_lambda": 0.5}], ids=str)
def test_what_is_missing_is_named_before_anything_is_trained(argument: dict[str, Any]) -> None:
    model = filled(model_of(**argument), ended=False)
    before = parameters(model)
    (name,) = argument
    with pytest.raises(ValueError, match=rf"{name}=.*Set model\._last_obs .*or leave the argument out"):
        model.train()
    assert torch.equal(parameters(model), before)
    model._last_obs, model._last_episode_starts = np.zeros((1, 4), np.float32), np.zeros(1, bool)
    model.train()
    assert not torch.equal(parameters(model), before)
    filled(model_of(recompute_advantage=True, n_epochs=1), ended=False).train()  # which recomputes nothing


@pytest.mark.parametrize("steps", [0, 7])
def test_a_buffer_that_is_not_full_is_not_trained_on(steps: int) -> None:
    model = model_of()
    if steps:
        model.learn(16, callback=lambda *_: model.num_timesteps <= steps)
    with pytest.raises(
        ValueError, match=rf"train\(\): the rollout buffer holds {steps} of its 16 steps; call learn\(\)"
    ):
        model.train()


@pytest.mark.parametrize("callback", ["none", "list", "object"])
@pytest.mark.parametrize(
    "options", [{}, {"recompute_advantage": True, "normalize_value": True}], ids=["plain", "turned"]
)
def test_collecting_and_training_by_hand_is_learning(callback: str, options: dict[str, Any], tmp_path: Path) -> None:
    checkpoints = CheckpointCallback(8, str(tmp_path))
    callbacks: Any = {"none": None, "list": [checkpoints], "object": checkpoints}[callback]
    learned = model_of(**options).learn(48)
    by_hand = model_of(**options)
    for _ in range(3):
        assert by_hand.collect_rollouts(by_hand.env, callbacks, by_hand.rollout_buffer, by_hand.n_steps)  # type: ignore[arg-type]
        by_hand.train()
        by_hand.dump_logs()
    assert torch.equal(parameters(by_hand), parameters(learned))
    assert by_hand.num_timesteps == 48 and len(by_hand.ep_info_buffer or ()) == 4  # of 10 steps each
    assert len(list(tmp_path.iterdir())) == (0 if callback == "none" else 6)


def test_a_policy_put_in_the_place_of_the_models_own_gets_its_value_normaliser() -> None:
    model = model_of(normalize_value=True).learn(32)
    model.policy = PPO("MlpPolicy", Toy(), **SETTINGS).policy
    model.learn(32, reset_num_timesteps=False)
    assert model.policy.value_net.std != 1


class Reading(BaseCallback):
    def _init_callback(self) -> None:
        self.logger.record("mine", 1.0)

    def _on_step(self) -> bool:
        return True


def test_the_silent_logger_makes_way_for_that_of_learn(tmp_path: Path) -> None:
    model = model_of(tensorboard_log=str(tmp_path))
    assert model.logger.output_formats == []
    model.learn(16, callback=Reading())
    assert model.logger.output_formats != [] and "train/loss" in model.logger.name_to_value
