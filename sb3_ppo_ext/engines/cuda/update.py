"""All epochs of an update without waiting for the device; the host reads what happened once, at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sb3_ppo_ext.engines.cuda.compilers import Compile
from sb3_ppo_ext.engines.cuda.controllers import DeviceControllers
from sb3_ppo_ext.engines.cuda.cuda_graphs import Recorder
from sb3_ppo_ext.engines.cuda.epochs import EpochRecordings
from sb3_ppo_ext.engines.fingerprints import fingerprint, signature
from sb3_ppo_ext.engines.graph_cache import evict_oldest, refuse_endless_compiling
from sb3_ppo_ext.engines.traced_update import UpdateFunctions
from sb3_ppo_ext.engines.tracing import tensors_of
from sb3_ppo_ext.engines.update_inputs import UpdateInputs
from sb3_ppo_ext.objective.statistics import Statistics
from sb3_ppo_ext.policies.adapter import unwrapped
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Update, exact_kl_of, refresh_advantage
from sb3_ppo_ext.update.kl_probe import KLProbe, probe_of
from sb3_ppo_ext.update.step import EpochStatistics, exceeds


class CudaGraphCache:
    """The recordings of one model, by what they compute and the addresses of their tensors."""

    def __init__(self, recorder: Recorder, compile: Compile) -> None:
        self.recorder = recorder
        self.compile = compile
        self.known: dict[Any, Any] = {}
        self.made = 0

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The recording for ``key``, made now if there is none."""
        if key not in self.known:
            refuse_endless_compiling(self.known, key)
            evict_oldest(self.known, key)
            self.known[key] = make()
            self.made += 1
        return self.known[key]


class RecordedRunner:
    """A ``Runner`` whose first epoch trains all of them; it waits for the device once, after that."""

    def __init__(self, run: Run, rollout: Rollout, update: Update, recordings: CudaGraphCache) -> None:
        self.run = run
        self.rollout = rollout
        self.update = update
        self.batch_size = min(run.batch_size, rollout.size)
        prepared = UpdateInputs(run, update)
        prepared.fill_knobs(run.knobs.values)
        self.state, inputs = prepared.state, prepared.inputs
        policy = unwrapped(run.policy)
        controllers = DeviceControllers(run.knobs, rollout.rows.advantage.device)
        fixed = {name: inputs[name] for name in ("parameters", "constants", "first", "second")}
        addresses = tuple(tensor.data_ptr() for tensor in tensors_of(fixed))
        shapes = signature({"rollout": rollout.rows, "inputs": inputs})
        key = ("update", prepared.plan, controllers.settings, fingerprint(policy), addresses, shapes)
        functions = UpdateFunctions(policy, update.adapter, prepared.plan)
        self.recorded: EpochRecordings = recordings.get(
            key, lambda: EpochRecordings(functions, inputs, controllers, rollout.rows, recordings.compile, run)
        )
        # The recordings may have been made with other objects of the same settings; the numbers to move are in these.
        self.recorded.controllers.controllers = controllers.controllers
        self.recorded.load(inputs, rollout.rows)
        self.probe: KLProbe | None = None
        with torch.no_grad():
            self.recorded.prepare(self.batch_size, recordings.recorder)

    def epochs(self) -> Iterator[EpochStatistics]:
        """The statistics of each epoch, until ``target_kl`` stopped them."""
        self.probe = probe_of(self.run, self.rollout, self.update.adapter, self.update.acted, eager=False)
        found = self._trained()
        self.run.apply_learning_rate()
        for index, epoch in enumerate(found):
            self.run.monitor.after_epoch(index, epoch.to_step)
            yield epoch

    def exact_kl(self, epochs: Sequence[EpochStatistics]) -> float:
        """The KL between the policies before and after the epochs, in nats per action; NaN if it is not known."""
        return exact_kl_of(self.probe, epochs)

    @torch.no_grad()
    def _trained(self) -> list[EpochStatistics]:
        run, rollout = self.run, self.rollout
        results, loaded = [], rollout.rows
        for index in range(run.settings.n_epochs):
            if index > 0:
                refresh_advantage(run, rollout, self.update.adapter)
            order = torch.cat(rollout.orders(self.batch_size))
            if rollout.rows is not loaded:  # with other advantages
                loaded = rollout.rows
                self.recorded.load_advantages(loaded)
            results.append(self.recorded.epoch(order, self.batch_size))
        if self.probe is not None:
            self.probe.compute()
        return self._read(results)

    def _read(self, results: list[tuple[Tensor, Tensor]]) -> list[EpochStatistics]:
        """The statistics of each epoch that took place; waits for the device."""
        tables, counts = (torch.stack(tensors).cpu().numpy() for tensors in zip(*results, strict=True))
        self.recorded.controllers.hand_back(self.run.knobs)
        found = []
        for table, counted in zip(tables, counts, strict=True):
            if not counted.any():  # an earlier epoch was the last
                break
            rows = torch.from_numpy(table[counted])
            stopped = bool(exceeds(Statistics.of_row(rows[-1]).approx_kl, self.run.settings.kl_limit))
            found.append(EpochStatistics(rows.double().numpy(), stopped))
        self.state.advance(sum(int(epoch.column("stepped").sum()) for epoch in found))
        return found
