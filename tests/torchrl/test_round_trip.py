"""There and back: collected and trained in TorchRL, saved and played as a PPOX model; trained here, continued there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from sb3_ppo_ext_torchrl import KnobScheduler, PPOXLoss, actor_module, critic_module
from sb3_ppo_ext_zoo.cli import main
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType, GymEnv, GymLikeEnv, GymWrapper, SerialEnv, set_exploration_type
from torchrl.objectives.value import GAE

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.tensordicts import rollout_to_tensordict, tensordict_to_rollout
from tests.environments import PaidAtTheEnd

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
FRAMES = 128  # of a rollout: 2 minibatches in each of 4 epochs


def model_of() -> PPOX:
    return PPOX("MlpPolicy", DummyVecEnv([PaidAtTheEnd] * 4), **SETTINGS)


def paid_at_the_end() -> GymWrapper:
    return GymWrapper(PaidAtTheEnd(), categorical_action_encoding=True)


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


def score(model: PPOX) -> float:
    mean, _ = evaluate_policy(model, DummyVecEnv([PaidAtTheEnd]), n_eval_episodes=2, warn=False)
    return float(np.asarray(mean))


# Greedy, the episodes are all the same, and a policy that has learned goes right four times. The path of a run is
# another on every machine, its end is not: of 16 seeds each reached 1 in every one of 64 episodes of sampled actions.


def test_learned_in_torchrl_saved_as_ppox_and_enjoyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = EnvSpec("PaidAtTheEnd-v0", "tests.environments:PaidAtTheEnd")
    monkeypatch.setitem(gym.registry, "PaidAtTheEnd-v0", spec)
    torch.manual_seed(0)
    model = model_of()
    train_in_torchrl(model, paid_at_the_end, 20 * FRAMES, FRAMES)
    model.save("logs/ppox/PaidAtTheEnd-v0_1/PaidAtTheEnd-v0")
    loaded = PPOX.load("logs/ppox/PaidAtTheEnd-v0_1/PaidAtTheEnd-v0.zip", device="cpu")
    assert score(loaded) == 1
    main(["enjoy", "--env", "PaidAtTheEnd-v0", "--no-render", "-n", "12", "--exp-id", "1"])
    assert "Mean reward: 1.00 +/- 0.00" in capsys.readouterr().out


def test_learned_half_here_and_continued_in_torchrl(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model_of().learn(3 * FRAMES).save(tmp_path / "half")
    continued = PPOX.load(tmp_path / "half", env=DummyVecEnv([PaidAtTheEnd] * 4), device="cpu")
    train_in_torchrl(continued, paid_at_the_end, 17 * FRAMES, FRAMES)
    # The optimizer's moments went along: 8 steps for each rollout here and there.
    assert {state["step"].item() for state in continued.policy.optimizer.state.values()} == {8 * (3 + 17)}
    assert continued.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)  # the end of the schedule
    assert score(continued) == 1
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        played = paid_at_the_end().rollout(10, actor_module(continued.policy))
    assert played["action"].tolist() == [1, 1, 1, 1] and played["next", "reward"].sum() == 1


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
