"""Runs of minibatches as recordings: gather, forward, loss, gradient, step, controllers and the early stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sb3_ppo_ext.engines.channels_last import convolves, images_channels_last
from sb3_ppo_ext.engines.cuda.controllers import DeviceControllers
from sb3_ppo_ext.engines.cuda.cuda_graphs import Recorder, Run
from sb3_ppo_ext.engines.errors import CompileError, first_line
from sb3_ppo_ext.engines.substitution import refuse_writes
from sb3_ppo_ext.engines.traced_update import UpdateFunctions
from sb3_ppo_ext.engines.tracing import ONE_AT_A_TIME, Inputs, tensors_of, trace
from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.host.pytorch.compilers import COMBO_KERNELS, inductor
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.statistics import Statistics
from sb3_ppo_ext.process_wide import ignoring_warnings
from sb3_ppo_ext.update.step import COLUMNS, controller_inputs, exceeds

MINIBATCHES = 256  # in one recording at most: its nodes take memory

# What compilers say of the code they are given is no user's business; and how exact products of float32 are to be is
# his to say: torch.set_float32_matmul_precision.
SILENT_COMPILERS = ignoring_warnings()

Traced = Callable[..., Any]
Finish = Callable[[Traced, list[Tensor]], Traced]  # of a traced function and its inputs: as it is, or compiled


def as_traced(traced: Traced, tensors: list[Tensor]) -> Traced:
    """Its operations one by one."""
    return traced


def fused(traced: Traced, tensors: list[Tensor], options: dict[str, Any] | None = None) -> Traced:
    """By TorchInductor: fewer kernels, after some tens of seconds; ``CompileError`` where it or its compilers fail."""
    try:
        with ONE_AT_A_TIME, SILENT_COMPILERS:
            compiled: Traced = inductor(traced, tensors, options)
    except Exception as error:  # also Triton's, and for want of the C compiler that its launchers are made by
        raise CompileError(f"TorchInductor fails on it ({type(error).__name__}: {first_line(error)})") from error
    return compiled


def combined(traced: Traced, tensors: list[Tensor]) -> Traced:
    """``fused``, and kernels that do not wait for each other in one: of many small tensors it makes a third fewer."""
    return fused(traced, tensors, COMBO_KERNELS)


class EpochRecordings:
    """All epochs of one kind of update, on tensors that stay where they are.

    A table [M, K] has the rows of M minibatches (see ``update.step.COLUMNS``); ``counts`` [M] says which of them came
    before the update was stopped, the one that stopped it included. ``inputs`` are those of ``UpdateInputs``, whose
    powers, knobs and limit of the KL become this object's own; so does ``rows``, the rollout. Both are filled again by
    ``load``. Once a minibatch exceeds the limit, no later one steps: the limit itself is then below anything.
    """

    def __init__(
        self,
        functions: UpdateFunctions,
        inputs: Inputs,
        controllers: DeviceControllers,
        rows: Minibatch,
        finish: Finish,
    ) -> None:
        self.functions = functions
        self.controllers = controllers
        self.finish = finish
        own_rows = trees.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, rows)
        if convolves(functions.policy):
            own_rows = own_rows._replace(observation=images_channels_last(own_rows.observation))
        self.rows: Minibatch = own_rows
        own = ("powers", "knobs", "kl_limit")
        self.inputs = {**inputs, **{name: trees.tree_map(torch.clone, inputs[name]) for name in own}}
        self.size, self.device = len(rows.advantage), rows.advantage.device
        self.in_two = any(one.every == "minibatch" for one in controllers.controllers.values())
        self._calls: dict[tuple[str, int], Traced] = {}
        self._pieces: dict[tuple[int, int], RecordedMinibatches] = {}
        self._replay_end: Run | None = None
        self.table, self.counts = torch.empty(0), torch.empty(0)
        self.halted_before = torch.zeros((), dtype=torch.bool, device=self.device)

    def load(self, inputs: Inputs, rows: Minibatch) -> None:
        """Takes over what changes from rollout to rollout."""
        for name in ("powers", "knobs", "kl_limit"):
            torch._foreach_copy_(tensors_of(self.inputs[name]), tensors_of(inputs[name]))
        torch._foreach_copy_(tensors_of(self.rows), tensors_of(rows))
        self.controllers.fill()
        self.write_knobs()

    def load_advantages(self, rows: Minibatch) -> None:
        """Those of another value function."""
        self.rows.advantage.copy_(rows.advantage)
        self.rows.value_target.copy_(rows.value_target)

    def write_knobs(self) -> None:
        """The controllers' numbers to the knobs they drive."""
        for name, value in self.controllers.values.items():
            self.inputs["knobs"][name].copy_(value)

    def changed(self) -> list[Tensor]:
        """Every tensor that a minibatch may write to, but a recording's own table."""
        kinds = ("parameters", "first", "second", "powers", "knobs", "kl_limit")
        return [*tensors_of({name: self.inputs[name] for name in kinds}), *self.controllers.values.values()]

    def minibatch(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """The update of the rows ``order``; returns its row of the table [K], and whether it counts (0-d bool)."""
        limit = self.inputs["kl_limit"]
        counts = limit > -torch.inf
        gathered = {"rollout": self.rows, "rows": order}
        row: Tensor = self._in_two(gathered, counts) if self.in_two else self._call("whole", gathered)[0]
        limit.copy_(torch.where(exceeds(Statistics.of_row(row).approx_kl, limit), -torch.inf, limit))
        return row, counts

    def _in_two(self, gathered: Inputs, counts: Tensor) -> Tensor:
        """With controllers that answer between gradient and step."""
        row, *gradients = self._call("gradient", gathered)
        found = Statistics.of_row(row)
        within = counts & ~exceeds(found.approx_kl, self.inputs["kl_limit"])
        measured = controller_inputs(found.kl, found.clip_fraction_low + found.clip_fraction_high)
        self.controllers.step("minibatch", measured, len(gathered["rows"]), within)
        self.write_knobs()
        stepped: Tensor = self._call("step", {"row": row, "gradients": gradients})[0]
        return stepped

    def _call(self, name: str, more: Inputs) -> Any:
        inputs = {**self.inputs, **more}
        tensors = tensors_of(inputs)
        key = (name, len(more["rows"]) if "rows" in more else 0)
        if key not in self._calls:
            functions = self.functions
            function = {"whole": functions.whole, "gradient": functions.gradient, "step": functions.step}[name]
            with torch.enable_grad():
                traced = trace(function, inputs, functions.policy)
            refuse_writes(traced, inputs)
            self._calls[key] = self.finish(traced, tensors)
        return self._calls[key](*tensors)

    def epoch(self, order: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """Replays one epoch in that order of rows [N * T]; its table and ``counts``, on the device."""
        self.halted_before.copy_(self.inputs["kl_limit"] == -torch.inf)
        parts, start = [], 0
        for count, rows in pieces(self.size, batch_size):
            stop = start + count * rows
            parts.append(self._pieces[count, rows](order[start:stop]))
            start = stop
        table, counts = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self._end_epoch(table, counts)
        return table, counts

    def prepare(self, batch_size: int, recorder: Recorder) -> None:
        """Records what ``epoch`` replays."""
        parts = pieces(self.size, batch_size)
        for count, rows in parts:
            if (count, rows) not in self._pieces:
                self._pieces[count, rows] = RecordedMinibatches(self, count, rows, recorder)
        self._prepare_end(sum(count for count, _ in parts), recorder)

    def _end_epoch(self, table: Tensor, counts: Tensor) -> None:
        """Controllers of the epoch, unless an earlier one was the last."""
        if self._replay_end is not None:
            self.table.copy_(table)
            self.counts.copy_(counts)
            self._replay_end()

    def _prepare_end(self, minibatches: int, recorder: Recorder) -> None:
        every = [controller.every for controller in self.controllers.controllers.values()]
        if self._replay_end is not None or "epoch" not in every:
            return
        self.table = torch.ones(minibatches, len(COLUMNS), device=self.device)
        self.counts = torch.ones(minibatches, dtype=torch.bool, device=self.device)

        def run() -> None:
            counted = self.counts[:, None]
            mean = Statistics.of_row(torch.where(counted, self.table, 0.0).sum(0) / counted.sum())
            measured = controller_inputs(mean.kl, mean.clip_fraction_low + mean.clip_fraction_high)
            self.controllers.step("epoch", measured, self.size, ~self.halted_before)
            self.write_knobs()

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


def pieces(size: int, batch_size: int) -> list[tuple[int, int]]:
    """How many minibatches of how many rows, recording after recording, make an epoch over ``size`` rows."""
    whole, rest = divmod(size, batch_size)
    counts = [MINIBATCHES] * (whole // MINIBATCHES) + [whole % MINIBATCHES] * (whole % MINIBATCHES > 0)
    return [(count, batch_size) for count in counts] + [(1, rest)] * (rest > 0)
