"""There and back: collected and trained in TorchRL, saved and played as a PPOX model; trained here, continued there."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from sb3_ppo_ext_torchrl import actor_module, critic_module
from sb3_ppo_ext_zoo.cli import main
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType, GymWrapper, SerialEnv, set_exploration_type
from torchrl.objectives.value import GAE

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.tensordicts import rollout_to_tensordict, tensordict_to_rollout
from tests.environments import PaidAtTheEnd
from tests.torchrl.loops import SETTINGS, cartpole, train_in_torchrl

FRAMES = 128  # of a rollout: 2 minibatches in each of 4 epochs


def model_of() -> PPOX:
    return PPOX("MlpPolicy", DummyVecEnv([PaidAtTheEnd] * 4), **SETTINGS)


def paid_at_the_end() -> GymWrapper:
    return GymWrapper(PaidAtTheEnd(), categorical_action_encoding=True)


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
