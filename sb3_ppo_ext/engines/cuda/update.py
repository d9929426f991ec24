"""All epochs of an update without waiting for the device; the host reads what happened once, at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sb3_ppo_ext.engines.cuda.controllers import DeviceControllers
from sb3_ppo_ext.engines.cuda.cuda_graphs import Recorder
from sb3_ppo_ext.engines.cuda.epochs import EpochRecordings, Finish
from sb3_ppo_ext.engines.fingerprints import fingerprint, signature
from sb3_ppo_ext.engines.graph_cache import make_room, refuse_restless
from sb3_ppo_ext.engines.traced_update import UpdateGraphs
from sb3_ppo_ext.engines.tracing import tensors_of
from sb3_ppo_ext.engines.update_inputs import UpdateInputs
from sb3_ppo_ext.objective.statistics import APPROX_KL
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.update.eager import Measured, Update, in_precision


class DeviceRecordings:
    """The recordings of one model, by what they compute and where its tensors lie."""

    def __init__(self, recorder: Recorder, finish: Finish) -> None:
        self.recorder = recorder
        self.finish = finish
        self.known: dict[Any, Any] = {}
        self.made = 0

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made for ``key``, made now where it is not known."""
        if key not in self.known:
            refuse_restless(self.known, key)
            make_room(self.known, key)
            self.known[key] = make()
            self.made += 1
        return self.known[key]


class DeviceUpdate:
    """As ``Update``, but for all epochs at once: see ``epochs``."""

    def __init__(self, eager: Update, recordings: DeviceRecordings, ratios: list[float], rollout: Rollout) -> None:
        self.eager = eager
        self.recordings = recordings
        self.early_stop_kl = math.nan  # the sampled KL that stopped an epoch
        prepared = UpdateInputs(eager, ratios)
        self.state, inputs = prepared.state, prepared.inputs
        for name, tensor in inputs["knobs"].items():
            tensor.fill_(getattr(eager.knobs.values, name))
        policy = eager.adapter.policy  # type: ignore[attr-defined]  # UpdateInputs has looked
        controllers = DeviceControllers(eager.knobs, rollout.rows.advantage.device)
        own = {name: inputs[name] for name in ("parameters", "constants", "first", "second")}
        places = tuple(tensor.data_ptr() for tensor in tensors_of(own))
        shapes = signature({"rollout": rollout.rows, "inputs": inputs})
        key = ("update", prepared.plan, controllers.settings, fingerprint(policy), places, shapes)
        parts = UpdateGraphs(policy, eager.adapter, prepared.plan)
        self.epochs_of: EpochRecordings = recordings.get(
            key, lambda: EpochRecordings(parts, inputs, controllers, rollout.rows, recordings.finish)
        )
        # Recordings know the controllers they were made with, whose numbers they move.
        self.epochs_of.controllers.controllers = controllers.controllers
        self.epochs_of.load(inputs, rollout.rows)

    @torch.no_grad()
    def prepare(self, rollout: Rollout, batch_size: int) -> None:
        """Records what ``epochs`` will replay; ``CompileError`` with the reason where that fails."""
        self.epochs_of.prepare(min(batch_size, rollout.size), self.recordings.recorder)

    @torch.no_grad()
    def epochs(
        self,
        rollout: Rollout,
        batch_size: int,
        n_epochs: int,
        refresh: Callable[[], None] | None,
        meanwhile: Callable[[], object],
    ) -> list[Measured]:
        """What ``n_epochs`` epochs showed, or fewer where the sampled KL of a minibatch exceeded 1.5 ``target_kl``.

        ``refresh`` renews the advantages of ``rollout.rows`` before every epoch but the first; ``meanwhile`` is called
        when all has been handed to the device and before anybody waits for it. Controllers of epochs and minibatches
        have moved afterwards, and the optimizer has counted its steps.
        """
        tables = []
        for epoch in range(n_epochs):
            if refresh is not None and epoch > 0:
                refresh()
                self.epochs_of.load_advantages(rollout.rows)
            order = torch.cat(rollout.orders(rollout.size))
            tables.append(self.epochs_of.epoch(order, min(batch_size, rollout.size)))
        meanwhile()
        return self._read(tables)

    def _read(self, tables: list[Tensor]) -> list[Measured]:
        """The one moment of waiting."""
        limit = in_precision(self.eager.kl_limit, tables[0].dtype)
        measured = self._measured(torch.stack(tables).cpu().double().numpy(), limit)
        self.epochs_of.controllers.hand_back(self.eager.knobs)
        taken = sum(int(np.isfinite(one.table[:, -1]).sum()) for one in measured)
        self.state.advance(taken)
        return measured

    def _measured(self, tables: np.ndarray, kl_limit: float) -> list[Measured]:
        measured: list[Measured] = []
        for table in tables:
            counted = table[table[:, -1] > 0, :-1]
            if not len(counted):  # an earlier epoch was the last
                break
            stopped = bool(counted[-1, APPROX_KL] > kl_limit)
            if stopped:
                self.early_stop_kl = float(counted[-1, APPROX_KL])
                counted[-1, -1] = math.nan  # no step was taken, so no norm
            measured.append(Measured(counted, stopped))
        return measured
