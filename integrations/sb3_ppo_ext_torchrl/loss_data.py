"""The data of ``PPOXLoss``, read from a tensordict: nothing is broadcast, and a missing key is named."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase, is_tensor_collection
from torch import Tensor

from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.distributions import ActionDistribution
from sb3_ppo_ext_torchrl import host
from sb3_ppo_ext_torchrl.distributions import torch_parameters
from sb3_ppo_ext_torchrl.errors import MissingKey, WrongShape

WRITTEN_BY = "a value estimator such as torchrl.objectives.value.GAE writes it, and set_keys() names another key"


class Read(NamedTuple):
    """A minibatch and its evaluation by the current policy. Log-probabilities are relative to the old policy.

    TorchRL reads the data and runs the actor in a single method, so the evaluation is there when the minibatch is.
    """

    new: Evaluation
    minibatch: Minibatch
    behaviour: Tensor  # log-ratio to the policy that collected; differs from the old one with delay_actor
    entropy: Any  # as TorchRL has it: [*batch, 1], a tensordict by head, or None

    def evaluate(self, minibatch: Minibatch) -> Evaluation:
        """The evaluation that is there already."""
        return self.new


def advantage_of(loss: Any, tensordict: TensorDictBase) -> tuple[Tensor, bool]:
    """The advantage [*batch, 1], and whether the value estimator has just made it."""
    key, action = loss.tensor_keys.advantage, loss.tensor_keys.action
    advantage = tensordict.get(key, None, as_padded_tensor=True)
    fresh = advantage is None
    if fresh:
        _estimate(loss, tensordict)
        advantage = tensordict.get(key)
    if _is_one_key(action) and tensordict.get(action, None) is None:
        raise MissingKey(f"the key {action} was not found in the input tensordict: the actions taken are needed there")
    old_key = loss.tensor_keys.sample_log_prob
    log_prob = tensordict.get(old_key, None) if _is_one_key(old_key) else None
    if advantage.shape[-1:] != (1,) or (isinstance(log_prob, Tensor) and log_prob.shape != advantage.shape[:-1]):
        other = "" if log_prob is None else f", {old_key!r} {tuple(log_prob.shape)}"
        raise WrongShape(
            f"{key!r} has shape {tuple(advantage.shape)}{other}: broadcast, they would turn the objective into an "
            "outer product over samples; [*batch, 1] and [*batch] are needed: give the advantage a trailing "
            "dimension of one (unsqueeze(-1)), the log-probability none (squeeze(-1))"
        )
    return advantage, fresh


def _is_one_key(key: Any) -> bool:
    return isinstance(key, (str, tuple))


def _estimate(loss: Any, tensordict: TensorDictBase) -> None:
    keys = loss.tensor_keys
    remedy = "run a value estimator such as torchrl.objectives.value.GAE on the whole batch first"
    if loss.critic_network is None:
        raise RuntimeError(
            "Critic network is not specified, cannot compute advantage within forward: "
            f"the key {keys.advantage!r} is missing; {remedy}"
        )
    missing = [key for key in (keys.reward, keys.done) if tensordict.get(("next", key), None) is None]
    if missing:
        raise MissingKey(
            f"the key {keys.advantage!r} is missing, and ('next', {missing[0]!r}) is missing too, so it cannot be "
            f"estimated here; {remedy}"
        )
    host.estimate_advantage(loss, tensordict)


def mask_of(loss: Any, tensordict: TensorDictBase, like: Tensor) -> Tensor | None:
    """True where a slot of [*batch] counts, by ``loss_mask_key``; None where nothing is masked."""
    mask: Tensor | None = None
    for key in host.mask_keys(loss):
        found = tensordict.get(key, None)
        if found is None:
            if loss.loss_mask_key != "auto":
                raise MissingKey(f"loss_mask_key is {key!r}, and there is no such key; set it to None for no mask")
            continue
        shape = found.shape
        while found.ndim > like.ndim and found.shape[-1] == 1:
            found = found.squeeze(-1)
        if found.shape != like.shape or found.dtype is not torch.bool:
            raise WrongShape(
                f"the mask {key!r} is {found.dtype} {tuple(shape)}; torch.bool {tuple(like.shape)} is needed, as the "
                f"log-probability, True where a slot counts: A mask of shape {tuple(shape)} cannot be applied to a "
                f"loss of shape {tuple(like.shape)}"
            )
        mask = found if mask is None else mask & found
    return mask


def old_distribution(loss: Any, tensordict: TensorDictBase) -> ActionDistribution:
    """The distribution the old policy acted by: from the data, or of the target actor with ``delay_actor``."""
    if loss.delay_actor:
        return torch_parameters(host.proximal_distribution(loss, tensordict))
    actor = loss.actor_network
    names = getattr(actor, "dist_params_keys", None)
    if names is None:
        raise ValueError(
            f"kl_estimator='exact': {type(actor).__name__} does not name its distribution's parameters; use 'k3'"
        )
    for name in names:
        if tensordict.get(name, None) is None:
            raise MissingKey(
                f"kl_estimator='exact' compares with the old distribution, and its parameter {name!r} is missing: "
                "collect with the actor (it writes it), or write it before training with actor.get_dist_params(data) "
                "under torch.no_grad(), or use kl_estimator='k3'"
            )
    # Detached, in a tensordict of their own: the actor overwrites these keys when it runs.
    stored = tensordict.select(*names).detach()
    return torch_parameters(actor.build_dist_from_params(stored))


def reference_log_ratio(loss: Any, tensordict: TensorDictBase) -> Tensor:
    """log (reference / old) [*batch] of the actions taken."""
    key, old_key = loss.tensor_keys.ref_log_prob, loss.tensor_keys.sample_log_prob
    reference, old = tensordict.get(key, None), tensordict.get(old_key, None)
    if not isinstance(reference, Tensor) or not isinstance(old, Tensor) or reference.shape != old.shape:
        shapes = [None if log_prob is None else tuple(log_prob.shape) for log_prob in (reference, old)]
        error = MissingKey if None in shapes else WrongShape
        raise error(
            f"ref_kl_coef needs the log-probabilities of the reference policy under {key!r}, a tensor of the shape of "
            f"{old_key!r}: there are {shapes[0]} and {shapes[1]}; write them, or pass ref_kl_coef=None"
        )
    return reference - old


def value_target(loss: Any, tensordict: TensorDictBase) -> Any:
    """The target of the value [*batch, 1], or a tensordict of several."""
    key = loss.tensor_keys.value_target
    target = tensordict.get(key, None)
    if target is None:
        raise MissingKey(
            f"the key {key} was not found in the input tensordict. Make sure you provided the right key: {WRITTEN_BY}"
        )
    return target


def old_value(loss: Any, tensordict: TensorDictBase) -> Tensor:
    """The value of the policy that collected [*batch, 1], which ``clip_value`` is measured from."""
    key = loss.tensor_keys.value
    value: Tensor | None = tensordict.get(key, None)
    if value is None:
        raise MissingKey(
            f"clip_value is set to {loss.clip_value}, but the key {key} was not found in the input tensordict. Make "
            f"sure that the 'value_key' passed to PPO exists in the input tensordict: {WRITTEN_BY}; or pass "
            "clip_value=None"
        )
    return value


def new_value(loss: Any, output: TensorDictBase) -> Tensor:
    """The value [*batch, 1] in what the critic has returned."""
    key = loss.tensor_keys.value
    value: Any = output.get(key, None)
    if value is None:
        raise MissingKey(
            f"the key {key} was not found in the critic output tensordict. Make sure that the 'value_key' passed to "
            f"PPO is accurate: the critic writes {loss.critic_network.out_keys}, and set_keys(value=...) names its key"
        )
    if is_tensor_collection(value):
        raise ValueError("the critic writes several values; the loss takes one: call loss_critic(), or use ClipPPOLoss")
    column: Tensor = value
    return column


def require_same_shape(loss: Any, value: Tensor, target: Tensor, old: Tensor) -> None:
    """[B] against [B, 1] would broadcast to [B, B]."""
    if not value.shape == target.shape == old.shape:
        keys = loss.tensor_keys
        raise WrongShape(
            f"The input tensors or tensordicts have shapes which are incompatible: the critic gives "
            f"{tuple(value.shape)}, {keys.value_target!r} has shape {tuple(target.shape)} and "
            f"{keys.value!r} {tuple(old.shape)}; all must be [*batch, 1]"
        )


def total(entropy: Any) -> Tensor:
    """The entropy [*batch], summed over the heads of a composite action."""
    if is_tensor_collection(entropy):
        entropy = entropy.sum(dim="feature", reduce=True)
    flat: Tensor = entropy[..., 0]
    return flat
