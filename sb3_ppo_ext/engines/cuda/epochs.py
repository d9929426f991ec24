"""Epochs as CUDA graphs: gather, forward, loss, gradient, step, controllers and the early stop of many minibatches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sb3_ppo_ext.engines.channels_last import convolves, images_channels_last
from sb3_ppo_ext.engines.cuda.compilers import Compile, Traced
from sb3_ppo_ext.engines.cuda.controllers import DeviceControllers
from sb3_ppo_ext.engines.cuda.cuda_graphs import Recorder
from sb3_ppo_ext.engines.cuda.cuda_graphs import Run as Replay
from sb3_ppo_ext.engines.cuda.reduced import ReducedMinibatches
from sb3_ppo_ext.engines.substitution import refuse_writes
from sb3_ppo_ext.engines.traced_update import UpdateFunctions
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of, trace
from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.statistics import Statistics
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.step import COLUMNS, controller_inputs, exceeds

MINIBATCHES = 256  # in one recording at most: its nodes take memory


class EpochRecordings:
    """All epochs of one kind of update, on tensors that stay where they are.

    A table [M, K] has the rows of M minibatches (see ``update.step.COLUMNS``); ``counts`` [M] is True for those before
    the update stopped, the one that stopped it included. ``inputs`` are those of ``UpdateInputs``; their powers, knobs
    and limit of the KL are copied here, and so are ``rows``, the rollout. ``load`` fills the copies again. Once a
    minibatch exceeds the limit, no later one steps: the limit is then set to minus infinity.
    """

    def __init__(
        self,
        functions: UpdateFunctions,
        inputs: Inputs,
        controllers: DeviceControllers,
        rows: Minibatch,
        compile: Compile,
        run: Run,
    ) -> None:
        self.functions = functions
        self.processes, self.of_all = run.processes, run.of_all
        self.controllers = controllers
        self.compile = compile
        self.rows: Minibatch = trees.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, rows)
        if convolves(functions.policy):
            self.rows = self.rows._replace(observation=images_channels_last(self.rows.observation))
        copied = ("powers", "knobs", "kl_limit")
        self.inputs = {**inputs, **{name: trees.tree_map(torch.clone, inputs[name]) for name in copied}}
        self.size, self.device = len(rows.advantage), rows.advantage.device
        self._calls: dict[tuple[str, int], Traced] = {}
        self._recorded: dict[tuple[int, int], RecordedMinibatches | ReducedMinibatches] = {}
        self._replay_end: Replay | None = None
        self.table, self.counts = torch.empty(0), torch.empty(0)
        self.stopped_before = torch.zeros((), dtype=torch.bool, device=self.device)

    def load(self, inputs: Inputs, rows: Minibatch) -> None:
        """Copies what changes from rollout to rollout."""
        for name in ("powers", "knobs", "kl_limit"):
            torch._foreach_copy_(tensors_of(self.inputs[name]), tensors_of(inputs[name]))
        torch._foreach_copy_(tensors_of(self.rows), tensors_of(rows))
        self.controllers.fill()
        self.write_knobs()

    def load_advantages(self, rows: Minibatch) -> None:
        """Copies the advantages and targets of another value function."""
        self.rows.advantage.copy_(rows.advantage)
        self.rows.value_target.copy_(rows.value_target)

    @property
    def flat_size(self) -> int:
        """The length of what ``gradient`` returns."""
        return sum(tensor.numel() for tensor in tensors_of(self.inputs["parameters"])) + len(Statistics._fields)

    def write_knobs(self) -> None:
        """Copies the controllers' numbers to the knobs they drive."""
        for name, value in self.controllers.values.items():
            self.inputs["knobs"][name].copy_(value)

    def changed(self) -> list[Tensor]:
        """Every tensor that a minibatch may write to, but a recording's own table."""
        kinds = ("parameters", "first", "second", "powers", "knobs", "kl_limit")
        return [*tensors_of({name: self.inputs[name] for name in kinds}), *self.controllers.values.values()]

    def minibatch(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Updates by the rows ``order``; returns the row of the table [K], and whether it counts (0-d bool)."""
        if self.controllers.moves_at("minibatch"):
            return self.step(self.gradient(order), len(order))
        counts = self.inputs["kl_limit"] > -torch.inf
        return self._limited(self._call("whole", {"rollout": self.rows, "rows": order})[0]), counts

    def gradient(self, order: Tensor) -> Tensor:
        """The gradient and the statistics of the rows ``order``, end to end."""
        flat: Tensor = self._call("gradient", {"rollout": self.rows, "rows": order})[0]
        return flat

    def step(self, flat: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """Moves the controllers of minibatches and takes the step; the same results as those of ``minibatch``."""
        counts = self.inputs["kl_limit"] > -torch.inf
        found = Statistics.of_row(flat[-len(Statistics._fields) :])
        within = counts & ~exceeds(found.approx_kl, self.inputs["kl_limit"])
        self._step_controllers("minibatch", found, samples, within)
        return self._limited(self._call("step", {"flat": flat})[0]), counts

    def _limited(self, row: Tensor) -> Tensor:
        """The row; the limit of the KL becomes minus infinity where it exceeds it."""
        limit = self.inputs["kl_limit"]
        limit.copy_(torch.where(exceeds(Statistics.of_row(row).approx_kl, limit), -torch.inf, limit))
        return row

    def _step_controllers(self, moment: str, found: Statistics, samples: int, go: Tensor) -> None:
        measured = controller_inputs(found.kl, found.clip_fraction_low + found.clip_fraction_high, found.kl_std)
        self.controllers.step(moment, measured, self.of_all(samples), go)
        self.write_knobs()

    def _call(self, name: str, more: Inputs) -> Any:
        inputs = {**self.inputs, **more}
        tensors = tensors_of(inputs)
        key = (name, len(more["rows"]) if "rows" in more else 0)
        if key not in self._calls:
            with torch.enable_grad():
                traced = trace(self.functions.named(name), inputs, self.functions.policy)
            refuse_writes(traced, inputs)
            self._calls[key] = self.compile(traced, tensors)
        return self._calls[key](*tensors)

    def epoch(self, order: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """Replays one epoch in that order of rows [N * T]; its table and ``counts``, on the device."""
        self.stopped_before.copy_(self.inputs["kl_limit"] == -torch.inf)
        results, start = [], 0
        for count, rows in recording_sizes(self.size, batch_size):
            stop = start + count * rows
            results.append(self._recorded[count, rows](order[start:stop]))
            start = stop
        table, counts = (torch.cat(tensors) for tensors in zip(*results, strict=True))
        if self._replay_end is not None:
            self.table.copy_(table)
            self.counts.copy_(counts)
            self._replay_end()
        return table, counts

    def prepare(self, batch_size: int, recorder: Recorder) -> None:
        """Records what ``epoch`` replays."""
        sizes = recording_sizes(self.size, batch_size)
        for count, rows in sizes:
            if (count, rows) not in self._recorded:
                self._recorded[count, rows] = self._record(count, rows, recorder)
        if self._replay_end is None and self.controllers.moves_at("epoch"):
            self._prepare_end(sum(count for count, _ in sizes), recorder)

    def _record(self, count: int, rows: int, recorder: Recorder) -> RecordedMinibatches | ReducedMinibatches:
        if self.processes.count == 1:
            return RecordedMinibatches(self, count, rows, recorder)
        known = (made for (_, of_rows), made in self._recorded.items() if of_rows == rows)
        return next(known, None) or ReducedMinibatches(self, rows, recorder)

    def _prepare_end(self, minibatches: int, recorder: Recorder) -> None:
        """Records the controllers of the epoch, which stay where an earlier one was the last."""
        self.table = torch.ones(minibatches, len(COLUMNS), device=self.device)
        self.counts = torch.ones(minibatches, dtype=torch.bool, device=self.device)

        def run() -> None:
            counted = self.counts[:, None]
            mean = Statistics.of_row(torch.where(counted, self.table, 0.0).sum(0) / counted.sum())
            self._step_controllers("epoch", mean, self.size, ~self.stopped_before)

        self._replay_end = recorder.record(run, self.changed())


class RecordedMinibatches:
    """``count`` minibatches of ``rows`` rows each, one after the other, as one recording."""

    def __init__(self, epochs: EpochRecordings, count: int, rows: int, recorder: Recorder) -> None:
        self.order = torch.arange(count * rows, device=epochs.device)
        self.table = torch.zeros(count, len(COLUMNS), device=epochs.device)
        self.counts = torch.zeros(count, dtype=torch.bool, device=epochs.device)

        def run() -> None:
            for index, order in enumerate(torch.split(self.order, rows)):
                self.table[index], self.counts[index] = epochs.minibatch(order)

        self._replay = recorder.record(run, [*epochs.changed(), self.table, self.counts])

    def __call__(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the table and of ``counts``."""
        self.order.copy_(order)
        self._replay()
        return self.table.clone(), self.counts.clone()


def recording_sizes(size: int, batch_size: int) -> list[tuple[int, int]]:
    """The recordings of an epoch over ``size`` rows, in order: how many minibatches, and the rows of each."""
    whole, rest = divmod(size, batch_size)
    counts = [MINIBATCHES] * (whole // MINIBATCHES) + [whole % MINIBATCHES] * (whole % MINIBATCHES > 0)
    return [(count, batch_size) for count in counts] + [(1, rest)] * (rest > 0)
