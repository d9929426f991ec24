"""One call of ``PPOX.train``: from a collected rollout, over its epochs, to what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch

from sb3_ppo_ext.by_hand import what_follows
from sb3_ppo_ext.compiled_update import CompiledUpdate
from sb3_ppo_ext.device.buffers import DeviceRollouts
from sb3_ppo_ext.device.rollout import DeviceRollout
from sb3_ppo_ext.device.update import DeviceUpdate
from sb3_ppo_ext.distributions import ActionDistribution
from sb3_ppo_ext.effects import without_trace
from sb3_ppo_ext.logged_kl import CHUNK, KLOfPasses, KLProbe, probe_of
from sb3_ppo_ext.memory import keeping_freed_memory
from sb3_ppo_ext.minibatches import Rollout
from sb3_ppo_ext.optimizers import prefer_foreach
from sb3_ppo_ext.policies import (
    PolicyAdapter,
    SB3Adapter,
    as_collected,
    evaluates_as_sb3,
    knows_distribution,
    unvalidated_distributions,
    unwrapped,
)
from sb3_ppo_ext.sequences import SequencePolicy
from sb3_ppo_ext.terms import Objective
from sb3_ppo_ext.update import Measured, Update
from sb3_ppo_ext.value_norm import PopArtLinear, install_popart

if TYPE_CHECKING:
    from sb3_ppo_ext.ppox import PPOX

Runner = Update | CompiledUpdate | DeviceUpdate
Probe = KLProbe | KLOfPasses


def collected(model: PPOX) -> Rollout:
    """The rollout that was collected last."""
    policy = unwrapped(model.policy)
    if isinstance(policy, SequencePolicy):
        return policy.rollout(model)
    over_rollout = model.normalize_advantage and model.advantage_scope == "rollout"
    if isinstance(model.rollout_buffer, DeviceRollouts):
        return DeviceRollout(model.rollout_buffer, model.action_space, normalize_advantage=over_rollout)
    return Rollout(model.rollout_buffer, model.action_space, normalize_advantage=over_rollout)


def train_on(model: PPOX, rollout: Rollout) -> tuple[list[Measured], float]:
    """All epochs over the rollout, or fewer where ``target_kl`` stops them; and the exact KL, NaN if not known."""
    with unvalidated_distributions(), keeping_freed_memory() if model.device.type == "cpu" else nullcontext():
        steered = steered_by_exact_kl(model)
        if (head := popart_head(model)) is not None:
            head.update(rollout.value_target)
        acted = model._watch.acted.take(rollout)
        update = prepare_update(model, rollout, with_distribution=steered, acted=acted)
        runner = model._compilation.update(model, rollout, update)
        eager = isinstance(runner, Update)
        probe = None if steered else probe_of(model, rollout, update.adapter, acted, eager=eager)
        epochs = list(run_epochs(model, rollout, update, runner, probe))
        return epochs, epochs[-1].mean("kl_exact") if probe is None else probe.measure(epochs)


def run_epochs(
    model: PPOX, rollout: Rollout, update: Update, runner: Runner, probe: Probe | None
) -> Iterator[Measured]:
    """What each epoch showed, until ``target_kl`` stops them."""
    for epoch, measured in enumerate(_measured(model, rollout, update, runner, probe)):
        model._watch.after_epoch(model, epoch, measured)
        model._n_updates += 1
        if not isinstance(runner, DeviceUpdate):  # whose controllers have moved
            step_controllers(model, "epoch", measured, rollout)
        yield measured
        if measured.stopped:
            if model.verbose >= 1:
                print(f"Early stopping at step {epoch} due to reaching max kl: {runner.early_stop_kl:.2f}")
            return


def _measured(model: PPOX, rollout: Rollout, update: Update, runner: Runner, probe: Probe | None) -> Iterator[Measured]:
    refresh = partial(refresh_advantage, model, rollout, update.adapter) if model.recompute_advantage else None
    if isinstance(runner, DeviceUpdate):
        look: Callable[[], object] = probe.look if isinstance(probe, KLProbe) else lambda: None
        yield from runner.epochs(rollout, model.batch_size, model.n_epochs, refresh, look)
        model._set_learning_rate(float(model.knobs.values.learning_rate))
        return
    for epoch in range(model.n_epochs):
        if refresh is not None and epoch > 0:
            refresh()
        update.check = model._watch.step_check(model, epoch)
        yield runner.epoch(rollout, model.batch_size)


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


def refresh_advantage(model: PPOX, rollout: Rollout, adapter: PolicyAdapter) -> None:
    """Values and GAE under the current value function, as Andrychowicz et al. 2021 recommend before every epoch."""
    policy = unwrapped(model.policy)
    with as_collected(policy), without_trace(policy), torch.no_grad():
        values = rollout.map_rows(adapter.values, max(CHUNK, model.batch_size))
        last_values, dones = what_follows(model)
    rollout.refresh_advantage(values, last_values, dones)


def step_controllers(model: PPOX, moment: str, measured: Measured, rollout: Rollout) -> None:
    """Lets the controllers of ``moment`` answer to what an epoch measured."""
    if model.knobs.any_at(moment):
        model.knobs.step(moment, measured.for_controllers() | rollout.measured, rollout.size)
        model._set_learning_rate(float(model.knobs.values.learning_rate))
