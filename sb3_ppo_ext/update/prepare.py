"""What an update needs before its first minibatch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sb3_ppo_ext.objective.distributions import ActionDistribution
from sb3_ppo_ext.objective.terms import Objective
from sb3_ppo_ext.policies.adapter import (
    SB3Adapter,
    as_collected,
    evaluates_as_sb3,
    knows_distribution,
    unwrapped,
)
from sb3_ppo_ext.policies.effects import without_trace
from sb3_ppo_ext.policies.family import SequencePolicy
from sb3_ppo_ext.policies.popart import PopArtLinear, install_popart
from sb3_ppo_ext.rollout.device_buffers import DeviceRollouts
from sb3_ppo_ext.rollout.device_minibatches import DeviceRollout
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.update.eager import Update
from sb3_ppo_ext.update.kl_probe import CHUNK
from sb3_ppo_ext.update.optimizers import prefer_foreach

if TYPE_CHECKING:
    from sb3_ppo_ext.ppox import PPOX


def collected(model: PPOX) -> Rollout:
    """The rollout that was collected last."""
    policy = unwrapped(model.policy)
    if isinstance(policy, SequencePolicy):
        return policy.rollout(model)
    over_rollout = model.normalize_advantage and model.advantage_scope == "rollout"
    if isinstance(model.rollout_buffer, DeviceRollouts):
        return DeviceRollout(model.rollout_buffer, model.action_space, normalize_advantage=over_rollout)
    return Rollout(model.rollout_buffer, model.action_space, normalize_advantage=over_rollout)


def prepare_update(
    model: PPOX, rollout: Rollout, *, with_distribution: bool, acted: ActionDistribution | None = None
) -> Update:
    """What stays the same over the rollout's minibatches; ``acted`` are the distributions it was collected by."""
    policy = unwrapped(model.policy)
    if isinstance(policy, SequencePolicy):
        return policy.update(model, rollout)
    adapter = SB3Adapter(model.policy, with_distribution=with_distribution)
    if with_distribution and acted is not None:
        rollout.rows = rollout.rows._replace(distribution=acted)
    elif with_distribution:
        with as_collected(policy), without_trace(policy):
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
    return install_popart(unwrapped(model.policy))  # which does nothing, unless the user has exchanged the policy


def steered_by_exact_kl(model: PPOX) -> bool:
    """Whether the loss or a controller needs the exact KL of every minibatch."""
    steered = any(knob.measures == "kl" for knob in model.knobs.controllers.values())
    return model.kl_estimator == "exact" and (model.penalized or steered)
