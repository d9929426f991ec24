"""Actions that are not allowed have probability 0: tic-tac-toe against a random opponent, the mask being observed.

The environment has the method ``action_masks()`` of sb3-contrib's MaskablePPO. Here the mask becomes part of the
observation, so that what was sampled under a mask is trained under it, eager and compiled, and no mask has to be passed
to ``predict``, callbacks and saved models.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import Schedule

from sb3_ppo_ext import PPOX

LINES = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]


class TicTacToe(gym.Env[np.ndarray, np.int64]):
    """The agent's marks are 1, those of the random opponent -1; a win is worth 1, a loss -1."""

    observation_space = spaces.Box(-1, 1, (9,), np.float32)
    action_space: spaces.Discrete = spaces.Discrete(9)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.board = np.zeros(9, np.float32)
        return self.board.copy(), {}

    def action_masks(self) -> np.ndarray:
        allowed: np.ndarray = self.board == 0
        return allowed

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.board[action] == 0, "a forbidden action"
        self.board[action] = 1
        if not self.won(1) and (self.board == 0).any():
            self.board[self.np_random.choice(np.flatnonzero(self.board == 0))] = -1
        reward = float(self.won(1)) - float(self.won(-1))
        return self.board.copy(), reward, reward != 0 or not (self.board == 0).any(), False, {}

    def won(self, mark: int) -> bool:
        return any(all(self.board[field] == mark for field in line) for line in LINES)


class MaskInObservation(gym.ObservationWrapper):
    """Observations with what the environment's ``action_masks()`` allows next."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, spaces.Discrete)
        mask = spaces.MultiBinary(int(env.action_space.n))
        self.observation_space = spaces.Dict({"action_mask": mask, "observation": env.observation_space})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"action_mask": np.asarray(self.get_wrapper_attr("action_masks")()), "observation": observation}


class MaskBesideLatent(MlpExtractor):
    """The usual networks. The mask, which is first among the features, goes on to the actor's last layer."""

    n_actions: int

    def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().forward_actor(features), features[:, : self.n_actions]], dim=1)


class MaskedLogits(torch.nn.Module):
    """The logits of a linear layer, and -1e8 for an action that the mask excludes."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, latent_and_mask: torch.Tensor) -> torch.Tensor:
        latent, mask = latent_and_mask.split([self.linear.in_features, self.linear.out_features], dim=1)
        return torch.where(mask > 0.5, self.linear(latent), -1e8)


class MaskedPolicy(MultiInputActorCriticPolicy):
    """``MultiInputPolicy`` for observations of ``MaskInObservation``."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = MaskBesideLatent(
            self.features_dim, net_arch=self.net_arch, activation_fn=self.activation_fn, device=self.device
        )
        assert isinstance(self.action_space, spaces.Discrete)
        self.mlp_extractor.n_actions = int(self.action_space.n)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        assert isinstance(self.action_net, torch.nn.Linear)
        self.action_net = MaskedLogits(self.action_net)  # with the same parameters, which the optimizer has already


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=50_000)
    parser.add_argument("--episodes", type=int, default=200)
    arguments = parser.parse_args()
    env = make_vec_env(lambda: MaskInObservation(TicTacToe()), n_envs=8, seed=0)
    model = PPOX(MaskedPolicy, env, n_steps=128, batch_size=256, ent_coef=0.01, seed=0)
    before, _ = evaluate_policy(model, env, arguments.episodes)
    model.learn(arguments.timesteps)
    after, _ = evaluate_policy(model, env, arguments.episodes)
    print(f"mean score over {arguments.episodes} games: {before:.2f} untrained, {after:.2f} trained")


if __name__ == "__main__":
    main()
