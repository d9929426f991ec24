"""A policy of Stable-Baselines3 as TorchRL's actor and value operator, which share its parameters.

Nothing is copied: what an optimizer does to one side is done to the other, and ``model.save`` saves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_obs_shape, preprocess_obs
from stable_baselines3.common.torch_layers import MlpExtractor
from tensordict.nn import InteractionType, TensorDictModule
from torch import Tensor, nn
from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator

from sb3_ppo_ext.policies.adapter import unwrapped
from sb3_ppo_ext_torchrl.distributions import IndependentBernoulli, MultiCategorical
from sb3_ppo_ext_torchrl.policy import TorchRLPolicy

Key = str | tuple[str, ...]
InKeys = Key | Mapping[str, Key] | None


def actor_module(policy: nn.Module, in_keys: InKeys = None) -> ProbabilisticActor:
    """The actor of an SB3 actor-critic policy as a ``ProbabilisticActor``.

    Reads the observation (below), writes ``loc`` and ``scale`` or ``logits``, ``action`` and ``action_log_prob``, for
    any batch shape. It samples, or acts as TorchRL's exploration type demands. A Box action is not clipped, for its
    log-probability would be another action's: give the environment ``gymnasium.wrappers.ClipAction``. Discrete actions
    are indices: TorchRL's ``GymEnv`` takes them with ``categorical_action_encoding=True``.

    ``in_keys`` is the key of the observation, by default "observation"; of a Dict space a mapping from its names,
    by default to ("observation", name). Observations are those the policy was built for: for a ``CnnPolicy``, images
    with channels first.

    ``ValueError`` for gSDE, squashed outputs, and policies with a distribution or feature path of their own.
    """
    if isinstance(unwrapped(policy), TorchRLPolicy):
        return _own(policy, in_keys).actor
    sb3_policy = _checked(policy)
    net, names, cls, options = _action_head(sb3_policy)
    parameters = TensorDictModule(net, in_keys=_keys(sb3_policy.observation_space, in_keys), out_keys=names)
    return ProbabilisticActor(
        parameters,
        in_keys=names,
        distribution_class=cls,
        distribution_kwargs=options,
        return_log_prob=True,
        default_interaction_type=InteractionType.RANDOM,
    )


def critic_module(policy: nn.Module, in_keys: InKeys = None) -> ValueOperator:
    """The value function of an SB3 actor-critic policy as a ``ValueOperator`` that writes ``state_value`` [..., 1].

    ``in_keys`` as for :func:`actor_module`.
    """
    if isinstance(unwrapped(policy), TorchRLPolicy):
        return _own(policy, in_keys).critic
    sb3_policy = _checked(policy)
    return ValueOperator(ValueHead(sb3_policy), in_keys=_keys(sb3_policy.observation_space, in_keys))


def _own(policy: nn.Module, in_keys: InKeys) -> TorchRLPolicy:
    if in_keys is not None:
        raise ValueError(f"in_keys={in_keys!r}: the modules of a TorchRLPolicy have keys of their own; leave it out")
    return cast(TorchRLPolicy, unwrapped(policy))


class Features(nn.Module):
    """The features of observations of any batch shape, as ``ActorCriticPolicy.extract_features`` computes them."""

    def __init__(self, policy: ActorCriticPolicy, extractor: nn.Module) -> None:
        super().__init__()
        self.features_extractor = extractor
        self.observation_space = policy.observation_space
        self.normalize_images = policy.normalize_images
        space = policy.observation_space
        self.names = list(space.spaces) if isinstance(space, spaces.Dict) else None
        shapes = get_obs_shape(space)
        self.shapes = list(shapes.values()) if isinstance(shapes, dict) else [shapes]

    def flat(self, observations: tuple[Tensor, ...]) -> tuple[Tensor, torch.Size]:
        """The features [B, F], and the batch shape they stand for."""
        batch = observations[0].shape[: observations[0].ndim - len(self.shapes[0])]
        rows = [observation.reshape(-1, *shape) for observation, shape in zip(observations, self.shapes, strict=True)]
        observation: Any = rows[0] if self.names is None else dict(zip(self.names, rows, strict=True))
        features: Tensor = self.features_extractor(
            preprocess_obs(observation, self.observation_space, normalize_images=self.normalize_images)
        )
        return features, batch


class ActionHead(Features):
    """``logits``, in the shape of the batch."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy, policy.pi_features_extractor)
        self.mlp, self.forward_mlp = _half(policy.mlp_extractor, "policy_net", "forward_actor")
        self.action_net = policy.action_net

    def outputs(self, observations: tuple[Tensor, ...]) -> tuple[Tensor, torch.Size]:
        """The outputs of the action layer [B, A], and the batch shape."""
        features, batch = self.flat(observations)
        outputs: Tensor = self.action_net(_through(self.mlp, self.forward_mlp, features))
        return outputs, batch

    def forward(self, *observations: Tensor) -> Tensor:
        """Logits [..., sum of choices]."""
        logits, batch = self.outputs(observations)
        return logits.reshape(*batch, -1)


class GaussianHead(ActionHead):
    """``loc`` and ``scale``, in the shape of the batch and the action space."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy)
        self.log_std = policy.log_std
        assert policy.action_space.shape is not None
        self.action_shape = policy.action_space.shape

    def forward(self, *observations: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # two outputs
        """``loc`` and ``scale`` [..., *action shape]."""
        loc, batch = self.outputs(observations)
        scale = torch.ones_like(loc) * self.log_std.exp()
        shape = (*batch, *self.action_shape)
        return loc.reshape(shape), scale.reshape(shape)


class ValueHead(Features):
    """The value, in the shape of the batch and a trailing one; in reward units, PopArt heads included."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy, policy.vf_features_extractor)
        self.mlp, self.forward_mlp = _half(policy.mlp_extractor, "value_net", "forward_critic")
        self.value_net = policy.value_net

    def forward(self, *observations: Tensor) -> Tensor:
        """Values [..., 1]."""
        features, batch = self.flat(observations)
        value: Tensor = self.value_net(_through(self.mlp, self.forward_mlp, features))
        return value.reshape(*batch, 1)


def _half(extractor: nn.Module, net: str, method: str) -> tuple[nn.Module, str | None]:
    # Only the actor's own half: a loss with separate_losses=True detaches in the critic what the actor holds too.
    if type(extractor) is MlpExtractor:
        half: nn.Module = getattr(extractor, net)
        return half, None
    return extractor, method


def _through(mlp: nn.Module, method: str | None, features: Tensor) -> Tensor:
    latent: Tensor = mlp(features) if method is None else getattr(mlp, method)(features)
    return latent


def _action_head(policy: ActorCriticPolicy) -> tuple[nn.Module, list[str], type, dict[str, Any]]:
    """The network, its outputs, and the distribution that takes them."""
    distribution = policy.action_dist
    if isinstance(distribution, sb3.DiagGaussianDistribution):
        head = GaussianHead(policy)
        return head, ["loc", "scale"], IndependentNormal, {"event_dim": len(head.action_shape)}
    if isinstance(distribution, sb3.CategoricalDistribution):
        return ActionHead(policy), ["logits"], torch.distributions.Categorical, {}
    if isinstance(distribution, sb3.MultiCategoricalDistribution):
        return ActionHead(policy), ["logits"], MultiCategorical, {"sizes": tuple(distribution.action_dims)}
    if isinstance(distribution, sb3.BernoulliDistribution):
        return ActionHead(policy), ["logits"], IndependentBernoulli, {}
    raise ValueError(
        f"{type(distribution).__name__} has no counterpart in TorchRL here; use a policy with one of SB3's"
    )


def _checked(policy: nn.Module) -> ActorCriticPolicy:
    sb3_policy = unwrapped(policy)
    name = type(sb3_policy).__name__
    if not isinstance(sb3_policy, ActorCriticPolicy):
        raise ValueError(f"{name} is no actor-critic policy of Stable-Baselines3; pass model.policy of PPO or PPOX")
    if sb3_policy.use_sde or sb3_policy.squash_output:
        raise ValueError(
            f"{name} with use_sde=True (gSDE, squash_output) keeps a noise matrix per rollout, which no TorchRL "
            "distribution does; train it with use_sde=False and without squash_output"
        )
    for method in ("get_distribution", "_get_action_dist_from_latent", "predict_values", "extract_features"):
        if getattr(type(sb3_policy), method) is not getattr(ActorCriticPolicy, method):
            raise ValueError(
                f"{name} has a {method}() of its own, which its networks do not include; "
                "wrap it in TorchRL modules yourself, or move the change into its networks"
            )
    return sb3_policy


def _keys(space: spaces.Space[Any], in_keys: InKeys) -> Sequence[Key]:
    """The keys of an observation's entries, in the order of the space."""
    if not isinstance(space, spaces.Dict):
        if isinstance(in_keys, Mapping):
            raise ValueError(f"in_keys={dict(in_keys)!r}: the observation is no Dict space; one key is needed")
        return [in_keys or "observation"]
    names = list(space.spaces)
    if in_keys is None:
        return [("observation", name) for name in names]
    if not isinstance(in_keys, Mapping) or set(in_keys) != set(names):
        raise ValueError(f"in_keys={in_keys!r}: a mapping from {names} to keys is needed, for the Dict space has these")
    return [in_keys[name] for name in names]
