"""An actor and a critic of TorchRL as a policy of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from sb3_ppo_ext_torchrl.sb3_distributions import sb3_distribution

Part: TypeAlias = TensorDictModuleBase | Callable[[], TensorDictModuleBase]


class TorchRLPolicy(ActorCriticPolicy):
    """A TorchRL actor and value operator as the policy of ``PPO`` or ``PPOX``, on their own parameters.

    ``PPOX(TorchRLPolicy, env, policy_kwargs={"actor": actor, "critic": critic})``. Each is a module, or a function
    without arguments that makes one, which keeps saved files small (a module is pickled into them whole, and loaded
    models do not share it). They read the observation under their one input key; of a Dict space each under the key
    whose last part is its name. The critic writes "state_value".

    Normal, Categorical, Bernoulli and several Categoricals have the exact KL; others, such as ``TanhNormal``, need
    ``kl_estimator="k3"`` where PPOX needs the KL. One-hot actions become indices. What does not fit the spaces raises
    ``ValueError`` here.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        actor: Part,
        critic: Part,
        use_sde: bool = False,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if use_sde:
            raise ValueError("use_sde=True: TorchRLPolicy acts by the actor's own distribution; pass use_sde=False")
        self.given = {"actor": actor, "critic": critic}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor, self.critic = (_made(name, part) for name, part in self.given.items())
        if not hasattr(self.actor, "get_dist"):
            raise ValueError(
                f"actor is a {type(self.actor).__name__}; a probabilistic module with get_dist(), such as "
                "torchrl.modules.ProbabilisticActor, is needed"
            )
        if "state_value" not in self.critic.out_keys:
            raise ValueError(f"critic writes {list(self.critic.out_keys)}; 'state_value' must be among them")
        self._check_shapes()
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    @torch.no_grad()
    def _check_shapes(self) -> None:
        """Runs both once, on an observation of zeros, which also makes lazy layers and the distribution."""
        observation = _zeros(self.observation_space)
        self.action_dist = self.get_distribution(observation)
        action = self.action_dist.mode()
        assert self.action_space.shape is not None
        if tuple(action.shape[1:]) != self.action_space.shape:
            raise ValueError(
                f"the actor's actions have shape {tuple(action.shape[1:])}, the action space {self.action_space.shape}"
            )
        value = self.predict_values(observation)
        if tuple(value.shape) != (1, 1):
            raise ValueError(f"the critic gives {tuple(value.shape)} for one observation; (1, 1) is needed")

    def _tensordict(self, observation: PyTorchObs) -> TensorDict:
        read: Any = preprocess_obs(observation, self.observation_space, normalize_images=self.normalize_images)
        read = _flat_one_hots(read, self.observation_space)
        keys = dict.fromkeys([*self.actor.in_keys, *self.critic.in_keys])
        if not isinstance(read, dict):
            if len(keys) != 1:
                raise ValueError(f"actor and critic read {list(keys)}; of one observation, one key is needed")
            return TensorDict({next(iter(keys)): read}, batch_size=[len(read)])
        names = {key: key if isinstance(key, str) else key[-1] for key in keys}
        if strange := [key for key, name in names.items() if name not in read]:
            raise ValueError(f"actor or critic reads {strange}; the observation space has {list(read)}")
        return TensorDict({key: read[name] for key, name in names.items()}, batch_size=[len(next(iter(read.values())))])

    def _values(self, tensordict: TensorDict) -> Tensor:
        value: Tensor = self.critic(tensordict)["state_value"]
        return value

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The actor's distribution at ``obs``."""
        return sb3_distribution(self.actor.get_dist(self._tensordict(obs)))

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Values [B, 1]."""
        return self._values(self._tensordict(obs))

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values [B, 1] and log-probabilities [B]."""
        tensordict = self._tensordict(obs)
        distribution = sb3_distribution(self.actor.get_dist(tensordict))
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self._values(tensordict), distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values [B, 1], log-probabilities [B] and entropy [B] (None where it has no closed form)."""
        tensordict = self._tensordict(obs)
        distribution = sb3_distribution(self.actor.get_dist(tensordict))
        if not isinstance(self.action_space, spaces.Discrete):
            assert self.action_space.shape is not None
            actions = actions.reshape(-1, *self.action_space.shape)
        return self._values(tensordict), distribution.log_prob(actions), distribution.entropy()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "normalize_images": self.normalize_images,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self.given,
        }


def _flat_one_hots(observation: Any, space: spaces.Space[Any]) -> Any:
    """Indices come as [B] from an environment and as [B, 1] from a buffer; their one-hots are [B, n] for both."""
    if isinstance(space, spaces.Dict):
        return {name: _flat_one_hots(part, space.spaces[name]) for name, part in observation.items()}
    return observation.flatten(1) if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) else observation


def _made(name: str, part: Part) -> TensorDictModuleBase:
    module = part if isinstance(part, nn.Module) else part() if callable(part) else part
    if not isinstance(module, TensorDictModuleBase):
        raise ValueError(f"{name} is {module!r}; a TorchRL module is needed, or a function that makes one")
    return module


def _zeros(space: spaces.Space[Any]) -> PyTorchObs:
    if isinstance(space, spaces.Dict):
        return {name: _zeros(part) for name, part in space.spaces.items()}  # type: ignore[misc]  # no Dict in a Dict
    assert space.shape is not None
    return torch.as_tensor(np.zeros((1, *space.shape), dtype=space.dtype))
