"""PPOX's objective as a loss module of TorchRL: ``ppo_terms`` in the place of ClipPPOLoss's own arithmetic."""

from __future__ import annotations

import numbers
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, is_tensor_collection
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor
from torchrl.objectives import ClipPPOLoss

from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.losses import fill_masked, masked_mean, masked_sum, normalized, sum_of
from sb3_ppo_ext.objective.terms import KnobValues, ppo_terms, value_term
from sb3_ppo_ext_torchrl import loss_arguments as arguments
from sb3_ppo_ext_torchrl import loss_data as data
from sb3_ppo_ext_torchrl.distributions import torch_parameters
from sb3_ppo_ext_torchrl.loss_data import Read
from sb3_ppo_ext_torchrl.loss_diagnostics import diagnostics, explained_variance, value_clip_fraction
from sb3_ppo_ext_torchrl.ppox_model import arguments_of, modules_of, value_scale_of

if TYPE_CHECKING:
    from sb3_ppo_ext import PPOX

REDUCE = {"mean": masked_mean, "sum": masked_sum, "none": fill_masked}
PARAMETERS = tuple(f"{prefix}{name}_network_params" for prefix in ("", "target_") for name in ("actor", "critic"))


class PPOXLoss(ClipPPOLoss):  # type: ignore[misc]  # torchrl is untyped
    """PPO's loss with PPOX's choices, in ClipPPOLoss's place; at its defaults it is ClipPPOLoss, up to rounding.

    Takes every argument of :class:`torchrl.objectives.ClipPPOLoss` under its name and with its default (value error
    smooth l1 with weight 1, entropy weight 0.01), and the arguments below; an unknown one raises. What a PPOX model
    minimises, arguments and all, is ``PPOXLoss.from_ppox(model)``. Where it differs from ClipPPOLoss on purpose:

    - the ratio is clamped, not its logarithm, so ``clip_epsilon`` of 1 and above is no NaN;
    - ``kl_approx`` is the estimator k3, never negative, as Stable-Baselines3's; ``kl`` is there with a penalty;
    - every number, ``ESS``, ``clip_fraction`` and the normalisation of advantages included, obeys the mask
      (``loss_mask_key``), and is a scalar whatever the batch shape;
    - a log-probability that is not [*batch] is refused, not broadcast.

    It never moves a coefficient: ``KnobScheduler`` does.

    :param surrogate: "clip", "spo" (``clip_epsilon`` is its epsilon), "none" or one of your own, as for PPOX
    :param clip_epsilon: one number, or (low, high) for an asymmetric clip
    :param dual_clip: c > 1 bounds the loss of a bad action, or None
    :param kl_coef: weight of KL(old || new), nats per action, in ``loss_objective``; None: no such term
    :param kl_estimator: "exact" needs the old distribution's parameters in the data ("loc", "scale" or "logits", as the
        actor writes them); "k1", "k2", "k3" do not
    :param ref_kl_coef: weight of KL(new || reference), from its log-probabilities under "ref_log_prob"; None: no term
    :param value_clip: with ``clip_value``: "max" (TorchRL's, the larger error) or "sb3" (the clipped one)
    """

    @dataclass
    class _AcceptedKeys(ClipPPOLoss._AcceptedKeys):  # type: ignore[misc]  # torchrl is untyped
        ref_log_prob: NestedKey = "ref_log_prob"

    default_keys = _AcceptedKeys
    _in_keys: Any
    _out_keys: Any
    _schedulable_buffers: ClassVar[frozenset[str]] = frozenset({*arguments.OWN_COEFFICIENTS, "clip_epsilon"})

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
        coefficients = {name: options.pop(name, None) for name in arguments.OWN_COEFFICIENTS}
        options = arguments.checked_options(options, critic_network)
        choices = {"surrogate": surrogate, "kl_estimator": kl_estimator, "value_clip": value_clip}
        objective = arguments.checked_objective(options, coefficients, dual_clip=dual_clip, **choices)
        super().__init__(actor_network, critic_network, **options)
        self.objective = objective
        device = self.entropy_coeff.device
        for name, value in coefficients.items():
            self.register_coeff_buffer(name, arguments.as_float(name, value), device=device)
        self.value_scale: Tensor | None = None
        self._set_in_keys()

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, numbers.Real) and not isinstance(value, (bool, int, float)):
            value = float(value)  # a numpy scalar
        if name in arguments.TORCHRL_CHOICES:
            arguments.require_torchrl_choice(name, value)
        if name == "loss_critic_type" and hasattr(self, "objective"):  # not yet in TorchRL's constructor
            self.objective = replace(self.objective, value_error=value)
        if name in arguments.OWN_COEFFICIENTS and value is not None and getattr(self, name, "unset") is None:
            raise AttributeError(
                f"{name} is None, so the loss has no such term; build it with {name}=0.0 to set it later"
            )
        super().__setattr__(name, value)

    @classmethod
    def from_ppox(cls, model: PPOX, **overrides: Any) -> PPOXLoss:
        """What ``model`` minimises, over its own policy: training the loss trains the model.

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
        pair = self._asymmetric_clip
        return KnobValues(
            clip_range=self.clip_epsilon_low if pair else self.clip_epsilon,
            clip_range_high=self.clip_epsilon_high if pair else None,
            clip_range_vf=self.clip_value,
            ent_coef=self.entropy_coeff,
            vf_coef=self.critic_coeff if self._has_critic else 0.0,
            **{name: getattr(self, name) for name in arguments.OWN_COEFFICIENTS},
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
        terms = ppo_terms(read.new, read.minibatch, self.objective, knobs, value_scale=self.value_scale, reduce=reduce)
        weighted = terms.weighted(knobs)
        result = {"loss_objective": sum_of(weighted.policy, weighted.kl, weighted.ref_kl)}
        if read.entropy is not None:
            result["loss_entropy"] = weighted.entropy
            if self._entropy_coeff_map is not None:
                by_head = self._weighted_loss_entropy(read.entropy)[..., 0]
                result["loss_entropy"] = reduce(by_head, read.new.mask)
        if self._has_critic:
            result["loss_critic"] = weighted.value
        result |= diagnostics(self, read, knobs)
        output = TensorDict(result)
        self._clear_weakrefs(tensordict, output, *PARAMETERS)
        return output

    def _read(self, tensordict: TensorDictBase) -> Read:
        """What the terms are made of, in PPOX's shapes [*batch]."""
        advantage, fresh = data.advantage_of(self, tensordict)
        shape = advantage.shape[:-1]
        mask = data.mask_of(self, tensordict, advantage[..., 0])
        old = data.old_distribution(self, tensordict) if self.objective.uses_distributions else None
        log_ratio, dist, _, correction = self._log_weight(tensordict, adv_shape=shape)
        log_ratio, advantage = log_ratio[..., 0], self._normalized(advantage, tensordict, mask, fresh)[..., 0]
        behaviour = log_ratio
        if correction is not None:  # delay_actor, max_importance_ratio: a positive factor, on both sides of the clip
            behaviour = log_ratio + correction[..., 0]
            advantage = advantage * correction[..., 0].exp()
        # Of a composite action only the ratio is at hand: the log-probabilities here are relative to the old policy.
        zero = torch.zeros_like(log_ratio)
        value, target, old_value = self._values(tensordict) if self._has_critic else (zero, zero, zero)
        entropy = self._get_entropy(dist, adv_shape=shape) if self.entropy_bonus else None
        new = Evaluation(
            log_ratio,
            zero if entropy is None else data.total(entropy),
            value,
            None if old is None else torch_parameters(dist),
            mask,
            None if self.ref_kl_coef is None else data.reference_log_ratio(self, tensordict),
        )
        return Read(new, Minibatch(zero, zero, zero, old_value, advantage, target, old), behaviour, entropy)

    def _normalized(self, advantage: Tensor, tensordict: TensorDictBase, mask: Tensor | None, fresh: bool) -> Tensor:
        if self.advantage_norm is not None or self.normalize_advantage_exclude_dims:
            normalised: Tensor = self._maybe_normalize_advantage(advantage, tensordict, update_norm=fresh)
            return normalised
        if not self.normalize_advantage:
            return advantage
        return normalized(advantage, None if mask is None else mask.unsqueeze(-1))

    def _values(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor, Tensor]:
        """Value, target and old value [*batch]; of the old one the target where no clip needs it."""
        if self.separate_losses:
            tensordict = tensordict.detach()
        target = data.value_target(self, tensordict)
        old = data.old_value(self, tensordict) if self.clip_value is not None else target
        functional = self.critic_network_params.to_module if self.functional else None
        with functional(self.critic_network, preserve_module_state=False) if functional else nullcontext():
            value = data.new_value(self, self.critic_network(tensordict))
        target, value, old = self._critic_loss_inputs(target, value, old)
        data.require_same_shape(self, value, target, old)
        return value[..., 0], target[..., 0], old[..., 0]

    def loss_critic(self, tensordict: TensorDictBase) -> tuple[Any, ...]:
        """As ClipPPOLoss's: the weighted error of every slot [*batch, 1], value clip fraction, explained variance."""
        if is_tensor_collection(tensordict.get(self.tensor_keys.value_target, None)):
            several: tuple[Any, ...] = super().loss_critic(tensordict)
            return several
        value, target, old = self._values(tensordict)
        knobs = self.knobs
        rows = Minibatch(value, value, value, old, value, target)
        errors = value_term(value, rows, self.objective, knobs, None, self.value_scale, fill_masked).unsqueeze(-1)
        return (
            errors * knobs.vf_coef if self._has_critic else errors,
            None if self.clip_value is None else value_clip_fraction(value, old, self.clip_value),
            explained_variance(value, target) if self.log_explained_variance else None,
        )

    @property
    def out_keys(self) -> list[NestedKey]:
        """What the loss returns to a call without tensordict, in this order."""
        if self._out_keys is None:
            keys = ["loss_objective", "clip_fraction"]
            keys += ["entropy", "loss_entropy"] if self.entropy_bonus else []
            keys += ["loss_critic"] if self._has_critic else []
            keys += ["value_clip_fraction"] if self._has_critic and self.clip_value is not None else []
            keys += ["ESS", "kl_approx", "max_ratio", "mean_ratio"]
            keys += ["kl"] if self.objective.penalized else []
            keys += ["ref_kl"] if self.ref_kl_coef is not None else []
            self._out_keys = keys
        return list(self._out_keys)

    @out_keys.setter
    def out_keys(self, keys: list[NestedKey]) -> None:
        self._out_keys = keys

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        keys = set(self._in_keys)
        if hasattr(self, "objective"):  # TorchRL's constructor asks before there is one
            keys |= set(self.actor_network.dist_params_keys) if self.objective.uses_distributions else set()
            keys |= {self.tensor_keys.ref_log_prob} if self.ref_kl_coef is not None else set()
        # TorchRL leaves them in the order of a set, another one in every process.
        self._in_keys = sorted(keys, key=lambda key: key if isinstance(key, str) else "_".join(key))


PPOXLoss.__init__.__signature__ = arguments.joined_signature(PPOXLoss.__init__)  # type: ignore[attr-defined]
