"""One call of ``PPOX.train``: from a collected rollout, over its epochs, to what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch

from sb3_ppo_ext.engines.cpu.malloc import keeping_freed_memory
from sb3_ppo_ext.engines.cpu.update import CompiledUpdate
from sb3_ppo_ext.engines.cuda.update import DeviceUpdate
from sb3_ppo_ext.policies.adapter import (
    PolicyAdapter,
    as_collected,
    unvalidated_distributions,
    unwrapped,
)
from sb3_ppo_ext.policies.effects import without_trace
from sb3_ppo_ext.rollout.by_hand import what_follows
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.update.eager import Measured, Update
from sb3_ppo_ext.update.kl_probe import CHUNK, KLOfPasses, KLProbe, probe_of
from sb3_ppo_ext.update.prepare import popart_head, prepare_update, steered_by_exact_kl

if TYPE_CHECKING:
    from sb3_ppo_ext.ppox import PPOX

Runner = Update | CompiledUpdate | DeviceUpdate
Probe = KLProbe | KLOfPasses


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
