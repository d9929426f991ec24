"""PPOX's objective as a loss module of TorchRL: ``loss_and_statistics`` in the place of ClipPPOLoss's arithmetic."""

from __future__ import annotations

import numbers
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, is_tensor_collection
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor

from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.losses import fill_masked, masked_mean, masked_sum, normalized, sum_of
from sb3_ppo_ext.objective.terms import KnobValues, value_term
from sb3_ppo_ext.update.step import loss_and_statistics
from sb3_ppo_ext_torchrl import host
from sb3_ppo_ext_torchrl import loss_arguments as arguments
from sb3_ppo_ext_torchrl import loss_data as data
from sb3_ppo_ext_torchrl.coefficients import ADDED_COEFFICIENTS
from sb3_ppo_ext_torchrl.distributions import torch_parameters
from sb3_ppo_ext_torchrl.loss_data import Read
from sb3_ppo_ext_torchrl.loss_diagnostics import diagnostics, explained_variance, value_clip_fraction
from sb3_ppo_ext_torchrl.ppox_model import arguments_of, modules_of, value_scale_of

if TYPE_CHECKING:
    from sb3_ppo_ext import PPOX

REDUCE = {"mean": masked_mean, "sum": masked_sum, "none": fill_masked}


class PPOXLoss(host.ExtensibleLoss):
    """PPO's loss with PPOX's choices, in ClipPPOLoss's place; at its defaults it is ClipPPOLoss, up to rounding.

    Takes every argument of :class:`torchrl.objectives.ClipPPOLoss` under its name and with its default (value error
    smooth l1 with weight 1, entropy weight 0.01), and the arguments below; an unknown one raises. What a PPOX model
    minimises, arguments and all, is ``PPOXLoss.from_ppox(model)``. Where it differs from ClipPPOLoss on purpose:

    - the ratio is clamped, not its logarithm, so ``clip_epsilon`` of 1 and above is no NaN;
    - ``kl_approx`` is the estimator k3, never negative, as Stable-Baselines3's; ``kl`` is there with a penalty;
    - every number, ``ESS``, ``clip_fraction`` and the normalisation of advantages included, obeys the mask
      (``loss_mask_key``), and is a scalar whatever the batch shape;
    - a log-probability that is not ``[*batch]`` is refused, not broadcast.

    It never moves a coefficient: ``KnobScheduler`` does.

    :param surrogate: "clip", "spo" (``clip_epsilon`` is its epsilon), "none" or one of your own, as for PPOX
    :param clip_epsilon: one number, or (low, high) for an asymmetric clip
    :param dual_clip: c > 1 bounds the loss of a bad action, or None
    :param kl_coef: weight of KL(old || new), nats per action, in ``loss_objective``; None: no such term
    :param kl_coef_std: weight of the KL that a Gaussian's deviation makes; ``kl_coef`` is that of its mean then
    :param kl_estimator: "exact" needs the old distribution's parameters in the data ("loc", "scale" or "logits", as the
        actor writes them); "k1", "k2", "k3" do not
    :param ref_kl_coef: weight of KL(new || reference), from its log-probabilities under "ref_log_prob"; None: no term
    :param value_clip: with ``clip_value``: "max" (TorchRL's, the larger error) or "sb3" (the clipped one)
    """

    def __init__(
        self,
        actor_network: TensorDictModuleBase | None = None,
        critic_network: TensorDictModuleBase | None = None,
        *,
        surrogate: str = "clip",
        dual_clip: float | None = None,
        kl_estimator: str = "exact",
        value_clip: str = "max",
        **options: Any,
    ) -> None:
        coefficients = arguments.checked_coefficients({name: options.pop(name, None) for name in ADDED_COEFFICIENTS})
        options = arguments.checked_options(options, critic_network)
        choices = {"surrogate": surrogate, "kl_estimator": kl_estimator, "value_clip": value_clip}
        objective = arguments.checked_objective(options, coefficients, dual_clip=dual_clip, **choices)
        super().__init__(actor_network, critic_network, **options)
        self.objective = objective
        device = self.entropy_coeff.device
        for name, value in coefficients.items():
            self.register_coeff_buffer(name, value, device=device)
        self.value_scale: Tensor | None = None
        self.update_in_keys()

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, numbers.Real) and not isinstance(value, (bool, int, float)):
            value = float(value)  # a numpy scalar
        if name in arguments.TORCHRL_CHOICES:
            arguments.require_torchrl_choice(name, value)
        if name == "loss_critic_type" and hasattr(self, "objective"):  # not yet in TorchRL's constructor
            self.objective = replace(self.objective, value_error=value)
        if name in ADDED_COEFFICIENTS and value is not None and getattr(self, name, "unset") is None:
            raise AttributeError(
                f"{name} is None, so the loss has no such term; build it with {name}=0.0 to set it later"
            )
        super().__setattr__(name, value)

    @classmethod
    def from_ppox(cls, model: PPOX, **overrides: Any) -> PPOXLoss:
        """The loss that ``model`` minimises, over the model's policy: training the loss trains the model.

        Coefficients are those in force now; ``KnobScheduler.from_ppox`` takes their schedules and controllers along.
        ``overrides`` are arguments of ``PPOXLoss``. With ``advantage_scope="rollout"`` normalise the advantages of a
        whole rollout before it is split (``GAE(average_gae=True)``); with ``normalize_value`` call
        ``model.policy.value_net.update(value_target)`` with those of a rollout before it is trained on.
        """
        loss = cls(*modules_of(model.policy), **{**arguments_of(model), **overrides})
        loss.value_scale = value_scale_of(model)
        return loss

    @property
    def knobs(self) -> KnobValues:
        """The coefficients in force, under PPOX's names; 0-d tensors."""
        pair = host.has_two_clip_ranges(self)
        return KnobValues(
            clip_range=self.clip_epsilon_low if pair else self.clip_epsilon,
            clip_range_high=self.clip_epsilon_high if pair else None,
            clip_range_vf=self.clip_value,
            ent_coef=self.entropy_coeff,
            vf_coef=self.critic_coeff if host.has_critic(self) else 0.0,
            **{name: getattr(self, name) for name in ADDED_COEFFICIENTS},
        )

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses and diagnostics; ``loss_*`` are to be summed and minimised.

        ``tensordict`` has any batch shape; ``advantage`` and ``value_target`` are [*batch, 1], the log-probability
        [*batch]. Without ``advantage`` the value estimator is run first. ``KeyError`` for a missing key, ``ValueError``
        for another shape.
        """
        read = self._read(tensordict.clone(False))
        knobs, reduce = self.knobs, REDUCE[self.reduction]
        scale = self.value_scale
        evaluated, found = loss_and_statistics(
            read, read.minibatch, self.objective, knobs, value_scale=scale, reduce=reduce
        )
        weighted = evaluated.weighted
        result = {"loss_objective": sum_of(weighted.policy, weighted.kl, weighted.ref_kl, weighted.kl_std)}
        if read.entropy is not None:
            by_head = host.entropy_loss_by_head(self, read.entropy)
            result["loss_entropy"] = weighted.entropy if by_head is None else reduce(by_head, read.new.mask)
        if host.has_critic(self):
            result["loss_critic"] = weighted.value
        output = TensorDict(result | diagnostics(self, read, found, knobs))
        host.release(self, tensordict, output)
        return output

    def _read(self, tensordict: TensorDictBase) -> Read:
        """The minibatch and its evaluation, in PPOX's shapes [*batch]."""
        advantage, fresh = data.advantage_of(self, tensordict)
        shape = advantage.shape[:-1]
        mask = data.mask_of(self, tensordict, advantage[..., 0])
        old = data.old_distribution(self, tensordict) if self.objective.uses_distributions else None
        log_ratio, distribution, correction = host.acted(self, tensordict, shape)
        advantage = self._normalized(advantage, tensordict, mask, fresh)[..., 0]
        behaviour = log_ratio
        if correction is not None:  # delay_actor, max_importance_ratio: a positive factor, on both sides of the clip
            behaviour = log_ratio + correction
            advantage = advantage * correction.exp()
        # Of a composite action only the ratio is at hand: the log-probabilities here are relative to the old policy.
        zero = torch.zeros_like(log_ratio)
        value, target, old_value = self._values(tensordict) if host.has_critic(self) else (zero, zero, zero)
        entropy = host.entropy(self, distribution, shape) if self.entropy_bonus else None
        new = Evaluation(
            log_ratio,
            zero if entropy is None else data.total(entropy),
            value,
            None if old is None else torch_parameters(distribution),
            mask,
            None if self.ref_kl_coef is None else data.reference_log_ratio(self, tensordict),
        )
        return Read(new, Minibatch(zero, zero, zero, old_value, advantage, target, old), behaviour, entropy)

    def _normalized(self, advantage: Tensor, tensordict: TensorDictBase, mask: Tensor | None, fresh: bool) -> Tensor:
        if self.advantage_norm is not None or self.normalize_advantage_exclude_dims:
            return host.normalized_advantage(self, advantage, tensordict, fresh=fresh)
        if not self.normalize_advantage:
            return advantage
        return normalized(advantage, None if mask is None else mask.unsqueeze(-1))

    def _values(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor, Tensor]:
        """Value, target and old value [*batch]; of the old one the target where no clip needs it."""
        if self.separate_losses:
            tensordict = tensordict.detach()
        target = data.value_target(self, tensordict)
        old = data.old_value(self, tensordict) if self.clip_value is not None else target
        value = data.new_value(self, host.critic_output(self, tensordict))
        target, value, old = host.critic_loss_inputs(self, target, value, old)
        data.require_same_shape(self, value, target, old)
        return value[..., 0], target[..., 0], old[..., 0]

    def loss_critic(self, tensordict: TensorDictBase) -> tuple[Any, ...]:
        """The weighted error of every slot [*batch, 1], the value clip fraction and the explained variance."""
        if is_tensor_collection(tensordict.get(self.tensor_keys.value_target, None)):
            several: tuple[Any, ...] = super().loss_critic(tensordict)
            return several
        value, target, old = self._values(tensordict)
        knobs = self.knobs
        rows = Minibatch(value, value, value, old, value, target)
        errors = value_term(value, rows, self.objective, knobs, None, self.value_scale, fill_masked).unsqueeze(-1)
        return (
            errors * knobs.vf_coef if host.has_critic(self) else errors,
            None if self.clip_value is None else value_clip_fraction(value, old, self.clip_value),
            explained_variance(value, target) if self.log_explained_variance else None,
        )

    def returned_keys(self) -> list[NestedKey]:
        """See ``ExtensibleLoss``."""
        critic = host.has_critic(self)
        keys: list[NestedKey] = ["loss_objective", "clip_fraction"]
        keys += ["entropy", "loss_entropy"] if self.entropy_bonus else []
        keys += ["loss_critic"] if critic else []
        keys += ["value_clip_fraction"] if critic and self.clip_value is not None else []
        keys += ["ESS", "kl_approx", "max_ratio", "mean_ratio"]
        keys += ["kl"] if self.objective.penalized else []
        keys += ["kl_std"] if self.objective.splits_kl else []
        return [*keys, "ref_kl"] if self.ref_kl_coef is not None else keys

    def further_in_keys(self) -> set[NestedKey]:
        """See ``ExtensibleLoss``."""
        if not hasattr(self, "objective"):  # TorchRL's constructor reads the keys too
            return set()
        keys = set(self.actor_network.dist_params_keys) if self.objective.uses_distributions else set()
        return keys | {self.tensor_keys.ref_log_prob} if self.ref_kl_coef is not None else keys


PPOXLoss.__init__.__signature__ = arguments.joined_signature(PPOXLoss.__init__)  # type: ignore[attr-defined]
