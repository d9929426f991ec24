"""Runs of minibatches as recordings: gather, forward, loss, gradient, step, controllers and the early stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sb3_ppo_ext.engines.channels_last import convolves, images_channels_last
from sb3_ppo_ext.engines.cpu.libraries import CompileError, first_line
from sb3_ppo_ext.engines.cuda.controllers import DeviceControllers, steering
from sb3_ppo_ext.engines.cuda.cuda_graphs import Recorder, Run
from sb3_ppo_ext.engines.substitution import refuse_writes
from sb3_ppo_ext.engines.traced_update import UpdateGraphs
from sb3_ppo_ext.engines.tracing import ONE_AT_A_TIME, Inputs, tensors_of, trace
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.statistics import APPROX_KL, STATISTICS
from sb3_ppo_ext.process_wide import ignoring_warnings

MINIBATCHES = 256  # in one recording at most: its nodes take memory
WIDTH = len(STATISTICS) + 2  # of a row: the statistics, the gradient's norm, and whether the minibatch still counted

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
    from torch._inductor import compile as compile_fused

    try:
        with ONE_AT_A_TIME, SILENT_COMPILERS:
            compiled: Traced = compile_fused(traced, tensors, options)  # type: ignore[arg-type]  # a function, as it is
    except Exception as error:  # also Triton's, and for want of the C compiler that its launchers are made by
        raise CompileError(f"TorchInductor fails on it ({type(error).__name__}: {first_line(error)})") from error
    return compiled


def combined(traced: Traced, tensors: list[Tensor]) -> Traced:
    """``fused``, and kernels that do not wait for each other in one: of many small tensors it makes a third fewer."""
    return fused(traced, tensors, {"combo_kernels": True})


class EpochRecordings:
    """All epochs of one kind of update, on tensors that stay where they are.

    ``inputs`` are those of ``UpdateInputs``, whose powers, knobs and limit of the KL become this object's own; so does
    ``rows``, the rollout. Both are filled again by ``load``. Once a minibatch exceeds the limit, no later one steps:
    the limit itself is then below anything.
    """

    def __init__(
        self, parts: UpdateGraphs, inputs: Inputs, controllers: DeviceControllers, rows: Minibatch, finish: Finish
    ) -> None:
        self.parts = parts
        self.controllers = controllers
        self.finish = finish
        own_rows = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, rows)
        if convolves(parts.policy):
            own_rows = own_rows._replace(observation=images_channels_last(own_rows.observation))
        self.rows: Minibatch = own_rows
        own = ("powers", "knobs", "kl_limit")
        self.inputs = {**inputs, **{name: pytree.tree_map(torch.clone, inputs[name]) for name in own}}
        self.size, self.device = len(rows.advantage), rows.advantage.device
        self.in_two = any(one.every == "minibatch" for one in controllers.controllers.values())
        self._calls: dict[tuple[str, int], Traced] = {}
        self._pieces: dict[tuple[int, int], Piece] = {}
        self._replay_end: Run | None = None
        self.table: Tensor = torch.empty(0)
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
        """Every tensor that a minibatch may write to, but the piece's own table."""
        kinds = ("parameters", "first", "second", "powers", "knobs", "kl_limit")
        return [*tensors_of({name: self.inputs[name] for name in kinds}), *self.controllers.values.values()]

    def minibatch(self, order: Tensor) -> Tensor:
        """The update of the rows ``order``; returns its row of the table [WIDTH]."""
        limit = self.inputs["kl_limit"]
        counts = limit > -torch.inf
        row = self._in_two(order, counts) if self.in_two else self._call("whole", {"rollout": self.rows, "rows": order})
        limit.copy_(torch.where(row[APPROX_KL] > limit, -torch.inf, limit))
        return torch.cat((row, counts.to(row.dtype).reshape(1)))

    def _in_two(self, order: Tensor, counts: Tensor) -> Tensor:
        """With controllers that answer between gradient and step."""
        row, *gradients = self._call("gradient", {"rollout": self.rows, "rows": order}, whole=True)
        within = counts & ~(row[APPROX_KL] > self.inputs["kl_limit"])
        self.controllers.step("minibatch", steering(row), len(order), within)
        self.write_knobs()
        self._call("step", {"row": row, "gradients": gradients})
        return row  # type: ignore[no-any-return]  # a tensor

    def _call(self, part: str, more: Inputs, *, whole: bool = False) -> Any:
        inputs = {**self.inputs, **more}
        tensors = tensors_of(inputs)
        key = (part, len(more["rows"]) if "rows" in more else 0)
        if key not in self._calls:
            function = {"whole": self.parts.whole, "gradient": self.parts.gradient, "step": self.parts.step}[part]
            with torch.enable_grad():
                traced = trace(function, inputs, self.parts.policy)
            refuse_writes(traced, inputs)
            self._calls[key] = self.finish(traced, tensors)
        results = self._calls[key](*tensors)
        return results if whole else results[0]

    def epoch(self, order: Tensor, batch_size: int) -> Tensor:
        """Replays one epoch in that order of rows [N * T]; its table [minibatches, WIDTH], on the device."""
        self.halted_before.copy_(self.inputs["kl_limit"] == -torch.inf)
        tables, start = [], 0
        for count, rows in pieces(self.size, batch_size):
            stop = start + count * rows
            tables.append(self._pieces[count, rows](order[start:stop]))
            start = stop
        table = torch.cat(tables)
        self._end_epoch(table)
        return table

    def prepare(self, batch_size: int, recorder: Recorder) -> None:
        """Records what ``epoch`` replays."""
        parts = pieces(self.size, batch_size)
        for count, rows in parts:
            if (count, rows) not in self._pieces:
                self._pieces[count, rows] = Piece(self, count, rows, recorder)
        self._prepare_end(sum(count for count, _ in parts), recorder)

    def _end_epoch(self, table: Tensor) -> None:
        """Controllers of the epoch, unless an earlier one was the last."""
        if self._replay_end is not None:
            self.table.copy_(table)
            self._replay_end()

    def _prepare_end(self, minibatches: int, recorder: Recorder) -> None:
        if self._replay_end is not None or all(one.every != "epoch" for one in self.controllers.controllers.values()):
            return
        self.table = torch.ones(minibatches, WIDTH, device=self.device)

        def run() -> None:
            counted = self.table[:, -1:]
            mean = torch.where(counted > 0, self.table, 0.0).sum(0) / counted.sum()
            self.controllers.step("epoch", steering(mean), self.size, ~self.halted_before)
            self.write_knobs()

        self._replay_end = recorder.record(run, self.changed())


class Piece:
    """``count`` minibatches of ``rows`` rows each, one after the other, as one recording."""

    def __init__(self, epochs: EpochRecordings, count: int, rows: int, recorder: Recorder) -> None:
        self.order = torch.arange(count * rows, device=epochs.device)
        self.table = torch.zeros(count, WIDTH, device=epochs.device)

        def run() -> None:
            for index, order in enumerate(torch.split(self.order, rows)):
                self.table[index] = epochs.minibatch(order)

        self._replay = recorder.record(run, [*epochs.changed(), self.table])

    def __call__(self, order: Tensor) -> Tensor:
        """A copy of what the minibatches showed."""
        self.order.copy_(order)
        self._replay()
        return self.table.clone()


def pieces(size: int, batch_size: int) -> list[tuple[int, int]]:
    """How many minibatches of how many rows, piece after piece, make an epoch over ``size`` rows."""
    whole, rest = divmod(size, batch_size)
    counts = [MINIBATCHES] * (whole // MINIBATCHES) + [whole % MINIBATCHES] * (whole % MINIBATCHES > 0)
    return [(count, batch_size) for count in counts] + [(1, rest)] * (rest > 0)
