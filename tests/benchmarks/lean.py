"""The recipe of LeanRL, a faster CleanRL, on a GPU: what the benchmark of CUDA graphs is measured beside.

After github.com/meta-pytorch/LeanRL, ``ppo_atari_envpool_torchcompile.py``: policy, advantages and the whole minibatch
update go through ``torch.compile``; policy and update replay as CUDA graphs by tensordict's ``CudaGraphModule``; the
rollout is a list of tensordicts, stacked on the device; permutations are drawn there; Adam's learning rate is a tensor.
The networks, the environments and the settings are those of the PPO of Stable-Baselines3 that it stands beside.
"""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import VecEnv
from tensordict import TensorDict, from_module
from tensordict.nn import CudaGraphModule, TensorDictModule
from torch import Tensor, nn

from tests.benchmarks.measuring import Seconds, timed

CLIP, VF_COEF, MAX_GRAD_NORM, GAMMA, GAE_LAMBDA = 0.2, 0.5, 0.5, 0.99, 0.95


class Agent(nn.Module):
    """Actor and critic of ``MlpPolicy`` (two networks) or ``CnnPolicy`` (one) for discrete actions."""

    def __init__(self, env: VecEnv, *, image: bool, device: str) -> None:
        super().__init__()
        self.features: nn.Module = nn.Identity()
        self.pi: nn.Module = nn.Identity()
        self.vf: nn.Module = nn.Identity()
        actions = int(env.action_space.n)  # type: ignore[attr-defined]  # Discrete
        if image:
            self.features, width = NatureCNN(env.observation_space), 512
        else:
            size, width = int(env.observation_space.shape[0]), 64  # type: ignore[index]  # a Box
            self.pi, self.vf = (self._mlp(size, width) for _ in range(2))
        self.action_net, self.value_net = nn.Linear(width, actions), nn.Linear(width, 1)
        self.scale = 255.0 if image else 1.0
        self.to(device)

    @staticmethod
    def _mlp(size: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())

    def evaluate(self, obs: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Action, its log-probability, the entropy and the value."""
        features = self.features(obs.float() / self.scale)
        distribution = torch.distributions.Categorical(logits=self.action_net(self.pi(features)))
        chosen = distribution.sample() if action is None else action
        value = self.value_net(self.vf(features)).flatten()
        return chosen, distribution.log_prob(chosen), distribution.entropy(), value


class LeanPPO:
    """Rollouts and updates by the recipe; ``turn`` is one of each."""

    def __init__(
        self, env: VecEnv, *, image: bool, device: str, n_steps: int, batch_size: int, n_epochs: int, **_: Any
    ) -> None:
        torch.distributions.Distribution.set_default_validate_args(False)
        self.env, self.device = env, device
        self.n_steps, self.batch_size, self.n_epochs = n_steps, batch_size, n_epochs
        self.agent = Agent(env, image=image, device=device)
        acting = Agent(env, image=image, device=device)
        from_module(self.agent).data.to_module(acting)  # the same tensors, without gradients
        rate = torch.tensor(3e-4, device=device)
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=rate, eps=1e-5)
        self.policy: Any = torch.compile(acting.evaluate)
        self.gae: Any = torch.compile(self._gae, fullgraph=True)
        keys = ["obs", "actions", "logprobs", "advantages", "returns"]
        out = ["approx_kl", "v_loss", "pg_loss", "entropy", "clipfrac", "gn"]
        self.update: Any = TensorDictModule(torch.compile(self._update), in_keys=keys, out_keys=out)
        if device == "cuda":
            self.policy, self.update = CudaGraphModule(self.policy), CudaGraphModule(self.update)
        self.next_obs = self._on_device(env.reset())
        self.next_done = torch.zeros(env.num_envs, device=device)

    def _on_device(self, array: Any) -> Tensor:
        return torch.as_tensor(array).to(self.device, non_blocking=True)

    def _update(self, obs: Tensor, actions: Tensor, logprobs: Tensor, advantages: Tensor, returns: Tensor) -> Any:
        self.optimizer.zero_grad()
        _, newlogprob, entropy, value = self.agent.evaluate(obs, actions)
        logratio = newlogprob - logprobs
        ratio = logratio.exp()
        with torch.no_grad():
            approx_kl = ((ratio - 1) - logratio).mean()
            clipfrac = ((ratio - 1.0).abs() > CLIP).float().mean()
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        pg_loss = torch.max(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - CLIP, 1 + CLIP)).mean()
        v_loss = ((value - returns) ** 2).mean()
        entropy_loss = entropy.mean()
        (pg_loss + VF_COEF * v_loss).backward()
        norm = nn.utils.clip_grad_norm_(self.agent.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        return approx_kl, v_loss.detach(), pg_loss.detach(), entropy_loss.detach(), clipfrac, norm

    def _gae(self, next_obs: Tensor, next_done: Tensor, rollout: Any) -> Any:
        next_value = self.agent.evaluate(next_obs)[-1].detach()
        last, advantages = torch.zeros_like(next_value), []
        values, dones = rollout["vals"].unbind(0), rollout["dones"].unbind(0)
        following_value, following = next_value, 1.0 - next_done
        for step in range(self.n_steps - 1, -1, -1):
            delta = rollout["rewards"][step] + GAMMA * following_value * following - values[step]
            last = delta + GAMMA * GAE_LAMBDA * following * last
            advantages.append(last)
            following_value, following = values[step], 1.0 - dones[step]
        rollout["advantages"] = torch.stack(advantages[::-1])
        rollout["returns"] = rollout["advantages"] + rollout["vals"]
        return rollout

    def _rollout(self) -> Any:
        steps = []
        for _ in range(self.n_steps):
            torch.compiler.cudagraph_mark_step_begin()
            with torch.no_grad():
                action, logprob, _, value = self.policy(obs=self.next_obs)
            next_obs, reward, done, _ = self.env.step(action.cpu().numpy())
            steps.append(
                TensorDict(
                    {
                        "obs": self.next_obs, "vals": value.clone(), "actions": action.clone(),
                        "logprobs": logprob.clone(), "dones": self.next_done, "rewards": self._on_device(reward),
                    },
                    batch_size=(self.env.num_envs,),
                )
            )  # fmt: skip
            self.next_obs, self.next_done = self._on_device(next_obs), self._on_device(done).float()
        return torch.stack(steps, 0).to(self.device)

    def turn(self) -> Seconds:
        """Seconds of a rollout with its update, and of the update, advantages included."""
        spent = []
        return Seconds(timed(lambda: spent.append(timed(self._train_on(self._rollout())))), spent[0])

    def _train_on(self, rollout: Any) -> Any:
        def train() -> None:
            flat = self.gae(self.next_obs, self.next_done, rollout).view(-1)
            for _ in range(self.n_epochs):
                for rows in torch.randperm(flat.shape[0], device=self.device).split(self.batch_size):
                    told = self.update(flat[rows], tensordict_out=TensorDict())
            told["v_loss"].item()  # waits for the device

        return train
