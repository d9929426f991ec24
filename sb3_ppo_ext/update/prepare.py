"""Preparations for an update of rows: its rollout, its objective and its constants."""

from __future__ import annotations

from sb3_ppo_ext.objective.distributions import ActionDistribution
from sb3_ppo_ext.objective.terms import Objective
from sb3_ppo_ext.policies.adapter import SB3Adapter, evaluation_mode, unwrapped
from sb3_ppo_ext.policies.popart import PopArtLinear, install_popart
from sb3_ppo_ext.policies.side_effects import without_trace
from sb3_ppo_ext.rollout.device_buffers import DEVICE_BUFFERS
from sb3_ppo_ext.rollout.device_minibatches import DeviceRollout
from sb3_ppo_ext.rollout.minibatches import CHUNK, Rollout
from sb3_ppo_ext.rollout.sharded import sharded_rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Update, values_after
from sb3_ppo_ext.update.optimizers import prefer_foreach


def collected_rows(run: Run) -> Rollout:
    """The rollout of rows in ``run.buffer``, ready for epochs of minibatches."""
    rollout = _rollout(run)
    if run.settings.value_lambda is not None:
        policy = unwrapped(run.policy)
        with evaluation_mode(policy), without_trace(policy):
            rollout.use_value_lambda(run.settings.value_lambda, *values_after(run))
    return rollout


def _rollout(run: Run) -> Rollout:
    on_device = type(run.buffer) in DEVICE_BUFFERS
    if run.shards is not None:
        return sharded_rollout(run, on_device=on_device)
    rollout_class = DeviceRollout if on_device else Rollout
    return rollout_class(run.buffer, run.action_space, normalize_advantage=run.settings.normalizes_over("rollout"))


def row_update(run: Run, rollout: Rollout, acted: ActionDistribution | None = None) -> Update:
    """The constants of an update; ``acted`` are the distributions of the rows at collection."""
    adapter = SB3Adapter(run.policy, with_distribution=run.needs_exact_kl)
    if run.needs_exact_kl and acted is not None:
        rollout.rows = rollout.rows._replace(distribution=acted)
    elif run.needs_exact_kl:
        policy = unwrapped(run.policy)
        with evaluation_mode(policy), without_trace(policy):
            rollout.remember_distributions(adapter.distribution, max(CHUNK, run.settings.batch_size))
    prefer_foreach(run.policy.optimizer)
    head = popart_head(run)
    return Update(
        adapter=adapter,
        objective=objective_of(run),
        optimizer=run.policy.optimizer,
        parameters=list(run.policy.parameters()),
        value_scale=None if head is None else head.std,
        acted=acted,
    )


def objective_of(run: Run) -> Objective:
    """The objective that PPOX's arguments choose."""
    settings = run.settings
    return Objective(
        surrogate=settings.surrogate,
        dual_clip=settings.dual_clip,
        penalized=run.penalized,
        splits_kl=run.splits_kl,
        kl_estimator=settings.kl_estimator,
        value_clip=settings.value_clip,
        value_error=settings.value_error,
        normalize_advantage=settings.normalizes_over("minibatch") and run.shards is None,  # the rollout does it
    )


def popart_head(run: Run) -> PopArtLinear | None:
    """The value head with the statistics of the return, with ``normalize_value``; else None."""
    if not run.settings.normalize_value:
        return None
    return install_popart(unwrapped(run.policy))  # does nothing unless the user has exchanged the policy
