"""What an update needs before its first minibatch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from sb3_ppo_ext.objective.terms import Objective
from sb3_ppo_ext.policies.adapter import (
    SB3Adapter,
    evaluates_as_sb3,
    knows_distribution,
    unwrapped,
)
from sb3_ppo_ext.policies.family import SequencePolicy
from sb3_ppo_ext.policies.popart import PopArtLinear
from sb3_ppo_ext.rollout.device_buffers import DeviceRollouts
from sb3_ppo_ext.rollout.device_minibatches import DeviceRollout
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.update.eager import Update
from sb3_ppo_ext.update.optimizers import prefer_foreach

if TYPE_CHECKING:
    from sb3_ppo_ext.ppox import PPOX


# Rows per forward pass outside of the minibatches: enough to amortise the call, small beside a rollout of images.
CHUNK = 256


def collected(model: PPOX) -> Rollout:
    """The rollout that was collected last."""
    policy = unwrapped(model.policy)
    if isinstance(policy, SequencePolicy):
        return policy.rollout(model)
    over_rollout = model.normalize_advantage and model.advantage_scope == "rollout"
    if isinstance(model.rollout_buffer, DeviceRollouts):
        return DeviceRollout(model.rollout_buffer, model.action_space, normalize_advantage=over_rollout)
    return Rollout(model.rollout_buffer, model.action_space, normalize_advantage=over_rollout)


def prepare_update(model: PPOX, rollout: Rollout, *, with_distribution: bool) -> Update:
    """What stays the same over the rollout's minibatches."""
    policy = unwrapped(model.policy)
    if isinstance(policy, SequencePolicy):
        return policy.update(model, rollout)
    adapter = SB3Adapter(model.policy, with_distribution=with_distribution)
    if with_distribution:
        with as_collected(model.policy):
            rollout.remember_distributions(adapter.distribution, max(CHUNK, model.batch_size))
    prefer_foreach(model.policy.optimizer)
    head = popart_head(model)
    return Update(
        adapter=adapter,
        objective=Objective(
            surrogate=model.surrogate,
            dual_clip=model.dual_clip,
            penalized=model.penalized,
            kl_estimator=model.kl_estimator,
            value_clip=model.value_clip,
            value_error=model.value_error,
            normalize_advantage=model.normalize_advantage and model.advantage_scope == "minibatch",
        ),
        optimizer=model.policy.optimizer,
        parameters=list(model.policy.parameters()),
        max_grad_norm=model.max_grad_norm,
        knobs=model.knobs,
        set_learning_rate=model._set_learning_rate,
        target_kl=model.target_kl,
        value_scale=None if head is None else head.std,
        entropy_follows=evaluates_as_sb3(model.policy) and knows_distribution(model.policy),
    )


def popart_head(model: PPOX) -> PopArtLinear | None:
    """The layer that keeps the statistics of the return, with ``normalize_value``."""
    if not model.normalize_value:
        return None
    head = unwrapped(model.policy).value_net
    assert isinstance(head, PopArtLinear)
    return head


@contextmanager
def as_collected(policy: nn.Module) -> Iterator[None]:
    """The policy in evaluation mode, as it collects rollouts, until the end of the block of its training."""
    unwrapped(policy).set_training_mode(False)
    try:
        yield
    finally:
        unwrapped(policy).set_training_mode(True)


def steered_by_exact_kl(model: PPOX) -> bool:
    """Whether the loss or a controller needs the exact KL of every minibatch."""
    steered = any(knob.measures == "kl" for knob in model.knobs.controllers.values())
    return model.kl_estimator == "exact" and (model.penalized or steered)
