"""What a user replaced in policy, buffer or algorithm is used while a rollout is collected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.rollout.actors import Acted
from sb3_ppo_ext.rollout.collect import collect_rollouts
from tests.rollout_records import assert_same, collected, environments, state


class OwnAdd(RolloutBuffer):
    def add(self, obs: Any, action: Any, reward: np.ndarray, *args: Any) -> None:
        super().add(obs, action, 2 * reward, *args)


class OwnAdvantage(RolloutBuffer):
    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages *= 3


class OwnForward(ActorCriticPolicy):
    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, values + 1, log_prob


class OwnPieces(ActorCriticPolicy):
    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return super().extract_features(obs, features_extractor) * 2

    def _get_action_dist_from_latent(self, latent_pi: torch.Tensor) -> Any:
        return super()._get_action_dist_from_latent(latent_pi - 1)

    def predict_values(self, obs: Any) -> torch.Tensor:
        return super().predict_values(obs) + 5


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("MlpPolicy", {"rollout_buffer_class": OwnAdd}),
        ("MlpPolicy", {"rollout_buffer_class": OwnAdvantage}),
        (OwnForward, {}),
        (OwnPieces, {}),
        ("MlpPolicy", {"policy_kwargs": {"activation_fn": torch.nn.ReLU, "net_arch": {"pi": [8], "vf": []}}}),
    ],
)
@pytest.mark.parametrize("action", ["box", "discrete"])
def test_what_a_user_replaced_is_used(policy: Any, options: dict[str, Any], action: str) -> None:
    (ppo, theirs), (ppox, mine) = (
        collected(algorithm, environments(action=action), policy, **options) for algorithm in (PPO, PPOX)
    )
    assert_same(mine.calls, theirs.calls)
    assert_same(state(ppox), state(ppo))


def test_hooks_on_the_policy_s_layers_are_called() -> None:
    model = PPOX("MlpPolicy", environments(), n_steps=24, batch_size=18, seed=0, n_epochs=1, device="cpu")
    seen: list[tuple[int, ...]] = []
    model.policy.mlp_extractor.policy_net[0].register_forward_hook(lambda m, i, out: seen.append(tuple(out.shape)))
    model.learn(72)
    assert seen.count((3, 64)) == 24 and seen.count((18, 64)) == 4


class Mixin(PPO):
    rollouts = 0

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        self.rollouts += 1
        return super().collect_rollouts(*args, **kwargs)


class Mixed(PPOX, Mixin):
    infos = 0

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        self.infos += 1
        super()._update_info_buffer(infos, dones)


def test_overridden_methods_of_the_algorithm_are_called() -> None:
    model = Mixed("MlpPolicy", environments(), n_steps=24, batch_size=18, device="cpu").learn(144)
    assert model.rollouts == 2 and model.infos == 48


class Fixed:
    """An actor of one action, for which every state has the value 8."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.batches: list[int] = []

    def act(self, observation: Any) -> Acted:
        n = len(observation)
        return Acted(np.full((n, 2), 0.25), torch.full((n, 2), 0.25), torch.full((n, 1), 8.0), torch.full((n,), -1.0))

    def terminal_values(self, observations: list[Any]) -> list[torch.Tensor]:
        self.batches += [len(batch) for batch in observations]
        return [torch.full((1,), 8.0) for _ in observations]

    def last_values(self, observation: Any, dones: np.ndarray) -> torch.Tensor:
        return torch.full((len(dones), 1), 8.0)


def test_another_actor_takes_the_place_of_the_policy() -> None:
    model = PPOX("MlpPolicy", environments(count=2), n_steps=8, batch_size=8, gamma=0.5, device="cpu")
    _, callback = model._setup_learn(16)
    actors: list[Fixed] = []

    def actor_of(policy: ActorCriticPolicy) -> Fixed:
        actors.append(Fixed(policy))
        return actors[-1]

    buffer = model.rollout_buffer
    assert model.env is not None and collect_rollouts(model, model.env, callback, buffer, 8, actor_of)
    assert (buffer.actions == 0.25).all() and (buffer.values == 8).all() and (buffer.log_probs == -1).all()
    # Both actions are 0.25, and 0.1 is added per step. The episodes are cut after 7 and 8 steps: + 0.5 * 8.
    steps = np.array([[n, n] for n in (1, 2, 3, 4, 5, 6, 7, 8)], np.float32)
    steps[7, 0] = 1
    cut = np.zeros((8, 2), np.float32)
    cut[6, 0] = cut[7, 1] = 4
    np.testing.assert_allclose(buffer.rewards, 0.5 + 0.1 * steps + cut, rtol=1e-6)
    assert len(actors) == 1 and actors[0].batches == [1, 1]
