"""A TorchRL loop that trains the policy of a PPOX model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sb3_ppo_ext_torchrl import KnobScheduler, PPOXLoss
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, GymLikeEnv, SerialEnv
from torchrl.objectives.value import GAE

from sb3_ppo_ext import PPOX

SETTINGS: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 64,
    "n_epochs": 4,
    "gamma": 0.98,
    "gae_lambda": 0.9,
    "learning_rate": "linear:4e-3:1e-3",
    "clip_range": "linear:0.2:0.05",
    "seed": 0,
    "device": "cpu",
}


def cartpole() -> GymEnv:
    return GymEnv("CartPole-v1", categorical_action_encoding=True)


def train_in_torchrl(model: PPOX, make_env: Callable[[], GymLikeEnv], frames: int, frames_per_batch: int) -> None:
    """A TorchRL loop over the model's own policy, loss, schedules and optimizer."""
    loss = PPOXLoss.from_ppox(model)
    optimizer = model.policy.optimizer
    scheduler = KnobScheduler.from_ppox(model, loss, total_frames=frames, optimizer=optimizer)
    gae = GAE(gamma=model.gamma, lmbda=model.gae_lambda, value_network=loss.critic_network)
    env = SerialEnv(model.n_envs, make_env)
    env.set_seed(0)
    collector = Collector(
        env, loss.actor_network, frames_per_batch=frames_per_batch, total_frames=frames,
        auto_register_policy_transforms=True,
    )  # fmt: skip
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
