"""TorchRL's insides, as far as ``PPOXLoss`` uses them; no other file here names what TorchRL keeps private.

``tests/torchrl/test_host.py`` has a test for each assumption, so that an upgrade that breaks one fails there, by name.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.objectives import ClipPPOLoss, PPOLoss

from sb3_ppo_ext_torchrl.coefficients import ADDED_COEFFICIENTS

# ClipPPOLoss hands what it does not name on to PPOLoss, which swallows what it does not name either.
ACCEPTED = {
    name: parameter
    for cls in (ClipPPOLoss, PPOLoss)
    for name, parameter in inspect.signature(cls.__init__).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}
REMOVED = ("critic_coef", "entropy_coef")  # ClipPPOLoss's own error names what has replaced them
PARAMETERS = tuple(f"{prefix}{name}_network_params" for prefix in ("", "target_") for name in ("actor", "critic"))


class ExtensibleLoss(ClipPPOLoss):  # type: ignore[misc]  # torchrl is untyped
    """``ClipPPOLoss`` with further coefficients and keys; a subclass names the keys that it reads and returns."""

    @dataclass
    class _AcceptedKeys(ClipPPOLoss._AcceptedKeys):  # type: ignore[misc]  # torchrl is untyped
        ref_log_prob: NestedKey = "ref_log_prob"

    default_keys = _AcceptedKeys
    _in_keys: Any
    _out_keys: Any
    _schedulable_buffers: ClassVar[frozenset[str]] = frozenset(ADDED_COEFFICIENTS)  # may be assigned numbers

    def further_in_keys(self) -> set[NestedKey]:
        """The keys that ``forward`` reads besides those of ``ClipPPOLoss``."""
        return set()

    def returned_keys(self) -> list[NestedKey]:
        """The keys that a call without tensordict returns, in their order."""
        raise NotImplementedError

    def update_in_keys(self) -> None:
        """Brings ``in_keys`` up to date, in the same order in every process; TorchRL leaves them in that of a set."""
        super()._set_in_keys()
        keys = {*self._in_keys, *self.further_in_keys()}
        self._in_keys = sorted(keys, key=lambda key: key if isinstance(key, str) else "_".join(key))

    def _set_in_keys(self) -> None:  # TorchRL calls it where a key has got another name
        self.update_in_keys()

    @property
    def out_keys(self) -> list[NestedKey]:
        """The keys that a call without tensordict returns, in this order."""
        if self._out_keys is None:
            self._out_keys = self.returned_keys()
        return list(self._out_keys)

    @out_keys.setter
    def out_keys(self, keys: list[NestedKey]) -> None:
        self._out_keys = keys


class Acted(NamedTuple):
    """The actions of a batch under the current policy; tensors are [*batch].

    The proximal policy, which the ratio is to, is the collecting one, or with ``delay_actor`` a delayed one.
    """

    log_ratio: Tensor  # log (new / proximal)
    distribution: Any  # the current policy's
    correction: Tensor | None  # log (proximal / collecting), without gradient; None: 0 everywhere


def acted(loss: Any, tensordict: TensorDictBase, shape: torch.Size) -> Acted:
    """Runs the actor on a batch of that shape; a composite action counts as a whole."""
    log_ratio, distribution, _, correction = loss._log_weight(tensordict, adv_shape=shape)
    return Acted(log_ratio[..., 0], distribution, None if correction is None else correction[..., 0])


def proximal_distribution(loss: Any, tensordict: TensorDictBase) -> Any:
    """The distribution of the delayed actor (``delay_actor=True``)."""
    with torch.no_grad():
        _, distribution, _ = loss._get_cur_log_prob(tensordict, params=loss.target_actor_network_params)
    return distribution


def entropy(loss: Any, distribution: Any, shape: torch.Size) -> Any:
    """The entropy [*batch, 1], sampled where it has no closed form; of a composite action a tensordict by head."""
    return loss._get_entropy(distribution, adv_shape=shape)


def entropy_loss_by_head(loss: Any, by_head: TensorDictBase) -> Tensor | None:
    """The weighted entropy loss [*batch] where ``entropy_coeff`` is a mapping by head; None for a single weight."""
    if loss._entropy_coeff_map is None:
        return None
    weighted: Tensor = loss._weighted_loss_entropy(by_head)[..., 0]
    return weighted


def normalized_advantage(loss: Any, advantage: Tensor, tensordict: TensorDictBase, *, fresh: bool) -> Tensor:
    """The advantage [*batch, 1] by ``advantage_norm``, whose statistics a ``fresh`` one updates, or by dimensions."""
    normalized: Tensor = loss._maybe_normalize_advantage(advantage, tensordict, update_norm=fresh)
    return normalized


def estimate_advantage(loss: Any, tensordict: TensorDictBase) -> None:
    """Writes advantage and value target by the loss's value estimator."""
    loss.value_estimator(
        tensordict,
        params=loss._cached_critic_network_params_detached,
        target_params=loss.target_critic_network_params,
    )


def critic_output(loss: Any, tensordict: TensorDictBase) -> TensorDictBase:
    """Runs the critic, a functional one with the parameters that the loss holds."""
    critic, parameters = loss.critic_network, loss.critic_network_params
    with parameters.to_module(critic, preserve_module_state=False) if loss.functional else nullcontext():
        output: TensorDictBase = critic(tensordict)
    return output


def critic_loss_inputs(loss: Any, target: Tensor, value: Tensor, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three in the unit in which a subclass (``MAPPOLoss``) compares them."""
    inputs: tuple[Tensor, Tensor, Tensor] = loss._critic_loss_inputs(target, value, old)
    return inputs


def mask_keys(loss: Any) -> tuple[NestedKey, ...]:
    """The keys under which a mask may stand, by ``loss_mask_key``."""
    keys: tuple[NestedKey, ...] = loss._loss_mask_keys()
    return keys


def has_critic(loss: Any) -> bool:
    """True where the value's error is part of the loss."""
    return bool(loss._has_critic)


def has_two_clip_ranges(loss: Any) -> bool:
    """True where ``clip_epsilon`` is a pair: its buffers are ``clip_epsilon_low`` and ``clip_epsilon_high`` then."""
    return bool(loss._asymmetric_clip)


def release(loss: Any, *tensordicts: TensorDictBase) -> None:
    """Drops the weak references of tensordicts and parameters, which a compiled graph cannot return."""
    loss._clear_weakrefs(*tensordicts, *PARAMETERS)
