"""There and back: collected and trained in TorchRL, saved and played as a PPOX model; trained here, continued there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_ppo_ext_torchrl import KnobScheduler, PPOXLoss, actor_module, critic_module
from sb3_ppo_ext_zoo.cli import main
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType, GymEnv, SerialEnv, set_exploration_type
from torchrl.objectives.value import GAE

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.tensordicts import rollout_to_tensordict, tensordict_to_rollout

SETTINGS: dict[str, Any] = {
    "n_steps": 128,
    "batch_size": 256,
    "gamma": 0.98,
    "gae_lambda": 0.9,
    "learning_rate": "linear:1e-3:1e-4",
    "clip_range": "linear:0.2:0.05",
    "seed": 0,
    "device": "cpu",
}


def model_of() -> PPOX:
    return PPOX("MlpPolicy", make_vec_env("CartPole-v1", 8, seed=0), **SETTINGS)


def cartpole() -> GymEnv:
    return GymEnv("CartPole-v1", categorical_action_encoding=True)


def train_in_torchrl(model: PPOX, frames: int) -> None:
    """A TorchRL loop over the model's own policy, loss, schedules and optimizer."""
    loss = PPOXLoss.from_ppox(model)
    optimizer = model.policy.optimizer
    scheduler = KnobScheduler.from_ppox(model, loss, total_frames=frames, optimizer=optimizer)
    gae = GAE(gamma=model.gamma, lmbda=model.gae_lambda, value_network=loss.critic_network)
    env = SerialEnv(8, cartpole)
    env.set_seed(0)
    collector = Collector(
        env, loss.actor_network, frames_per_batch=1024, total_frames=frames, auto_register_policy_transforms=True
    )
    for batch in collector:
        with torch.no_grad():
            gae(batch)
        rows = batch.select("observation", "action", "action_log_prob", "advantage", "value_target").reshape(-1)
        measured = []
        for _ in range(model.n_epochs):
            for chosen in torch.randperm(len(rows)).split(model.batch_size):
                losses = loss(rows[chosen])
                (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
                torch.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                measured.append(losses.detach())
        scheduler.step(batch.numel(), TensorDict.stack(measured).mean(dim=0))
    collector.shutdown()


def score(model: PPOX) -> float:
    mean, _ = evaluate_policy(model, make_vec_env("CartPole-v1", 4, seed=1000), n_eval_episodes=20)
    return float(np.asarray(mean))


@pytest.mark.slow
def test_learned_in_torchrl_saved_as_ppox_and_enjoyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = model_of()
    train_in_torchrl(model, 30 * 1024)
    model.save("logs/ppox/CartPole-v1_1/CartPole-v1")
    loaded = PPOX.load("logs/ppox/CartPole-v1_1/CartPole-v1.zip", device="cpu")
    assert score(loaded) >= 475
    main(["enjoy", "--env", "CartPole-v1", "--no-render", "-n", "1100", "--exp-id", "1"])
    printed = capsys.readouterr().out
    (mean,) = [float(line.split()[2]) for line in printed.splitlines() if line.startswith("Mean reward:")]
    assert mean >= 475


@pytest.mark.slow
def test_learned_half_here_and_continued_in_torchrl(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model_of().learn(10 * 1024).save(tmp_path / "half")
    continued = PPOX.load(tmp_path / "half", env=make_vec_env("CartPole-v1", 8, seed=0), device="cpu")
    assert score(continued) < 475
    train_in_torchrl(continued, 30 * 1024)
    assert score(continued) >= 475
    actor = actor_module(continued.policy)
    env = cartpole()
    env.set_seed(1000)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        lengths = [len(env.rollout(500, actor)) for _ in range(10)]
    assert np.mean(lengths) >= 475, lengths  # the reward is 1 per step


def test_a_batch_of_a_collector_trains_a_ppox_model() -> None:
    model = PPOX("MlpPolicy", make_vec_env("CartPole-v1", 4, seed=0), n_steps=32, batch_size=32, seed=0, device="cpu")
    model._setup_learn(1000, None)
    critic = critic_module(model.policy)
    collector = Collector(
        SerialEnv(4, cartpole), actor_module(model.policy), frames_per_batch=128, total_frames=128,
        auto_register_policy_transforms=True,
    )  # fmt: skip
    (batch,) = collector
    collector.shutdown()
    with torch.no_grad():
        GAE(gamma=0.99, lmbda=0.95, value_network=critic)(batch)
    tensordict_to_rollout(batch, model.rollout_buffer)
    again = rollout_to_tensordict(model.rollout_buffer)
    torch.testing.assert_close(again["advantage"], batch["advantage"].transpose(0, 1), rtol=0, atol=0)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.train()
    assert all((one != other).any() for one, other in zip(before, model.policy.parameters(), strict=True))
