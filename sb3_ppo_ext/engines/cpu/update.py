"""An update through compiled graphs, with the eager update for a last minibatch that is smaller than the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from sb3_ppo_ext.distributed.processes import Processes
from sb3_ppo_ext.engines.channels_last import convolves, images_channels_last
from sb3_ppo_ext.engines.cpu.libraries import Call
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.engines.substitution import WrittenBuffers
from sb3_ppo_ext.engines.traced_adam import groups_of
from sb3_ppo_ext.engines.traced_update import UpdateFunctions
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of
from sb3_ppo_ext.engines.update_inputs import UpdateInputs
from sb3_ppo_ext.host.pytorch.modules import has_gradient_hooks, is_dropout, keeps_running_statistics
from sb3_ppo_ext.host.pytorch.optimizers import hooks_after_step, hooks_before_step
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.statistics import MAXIMA, Statistics
from sb3_ppo_ext.policies.adapter import unwrapped
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.rollout.rows import gathered_rows
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.eager import EagerRunner, RowGradients, step_minibatch_controllers
from sb3_ppo_ext.update.epochs import Update, epochs_of, exact_kl_of
from sb3_ppo_ext.update.kl_probe import KLProbe, probe_of
from sb3_ppo_ext.update.step import COLUMNS, EpochStatistics, exceeds

UpdateRows = Callable[[Tensor], Tensor]  # indices of rows of the rollout -> the row of their update


class CompiledRunner:
    """A ``Runner`` that calls a compiled graph for each minibatch.

    ``graphs`` holds what is compiled from rollout to rollout. A last minibatch that is smaller is trained on eagerly: a
    graph of its own would take 20 s to compile for one minibatch an epoch.
    """

    def __init__(self, run: Run, rollout: Rollout, update: Update, graphs: Graphs) -> None:
        self.run = run
        self.rollout = rollout
        self.update = update
        self.graphs = graphs
        self.eager = EagerRunner(run, rollout, update, RowGradients(update))
        self.batch_size = min(run.batch_size, rollout.size)
        self._calls: dict[tuple[str, int | None], tuple[Call, WrittenBuffers]] = {}
        self._update_of_rows: tuple[Minibatch | None, UpdateRows | None] = (None, None)
        self.prepared = UpdateInputs(run, update)
        self.state, self.inputs = self.prepared.state, self.prepared.inputs
        self.functions = UpdateFunctions(unwrapped(run.policy), update.adapter, self.prepared.plan)
        self._fixed = tensors_of(self.inputs)
        self.probe: KLProbe | None = None
        self._compiled()  # now, so that CompileError is raised here

    def epochs(self) -> Iterator[EpochStatistics]:
        """The statistics of each epoch, until ``target_kl`` stops them."""
        self.probe = probe_of(self.run, self.rollout, self.update.adapter, self.update.acted, eager=False)
        return epochs_of(self.run, self.rollout, self.update, self.epoch)

    def exact_kl(self, epochs: Sequence[EpochStatistics]) -> float:
        """The KL between the policies before and after the epochs, in nats per action; NaN if it is not known."""
        return exact_kl_of(self.probe, epochs)

    @torch.no_grad()
    def epoch(self, index: int) -> EpochStatistics:
        """Trains on all minibatches once, or until the sampled KL of a minibatch exceeds the limit."""
        self.prepared.fill_knobs(self.run.knobs.values)
        orders = self.rollout.orders(self.batch_size)
        train_on = self._compiled()
        limited, limit = self.run.settings.target_kl is not None, self.run.settings.kl_limit
        rows: list[Tensor] = []
        counted = 0  # minibatches whose steps the optimizer's state counts already
        stopped = False
        try:
            for order in orders:
                if order.numel() == self.batch_size:
                    rows.append(train_on(order))
                else:
                    self.state.advance(steps_in(rows))
                    rows.append(self._eagerly(order, index))
                    counted = len(rows)
                if limited and (stopped := bool(exceeds(Statistics.of_row(rows[-1]).approx_kl, limit))):
                    break
        finally:  # also where the user interrupts
            self.state.advance(steps_in(rows[counted:]))
        return EpochStatistics.of_rows(rows, stopped=stopped)

    def _compiled(self) -> UpdateRows:
        """The compiled update by ``batch_size`` rows of the rollout."""
        rollout = self.rollout
        rows, update = self._update_of_rows
        if update is None or rows is not rollout.rows:  # new rows where advantages were computed anew
            if convolves(self.functions.policy):  # once for all minibatches
                observation = images_channels_last(rollout.rows.observation)
                rollout.rows = rollout.rows._replace(observation=observation)
            more: Inputs = {"rollout": rollout.rows, "rows": torch.arange(self.batch_size)}
            tensors = [*self._fixed, *tensors_of(more)]
            in_two = self.run.knobs.any_at("minibatch") or self.run.processes.count > 1
            make = self._two_graphs if in_two else self._one_graph
            update = make({**self.inputs, **more}, tensors)
            self._update_of_rows = (rollout.rows, update)
        return update

    def _one_graph(self, inputs: Inputs, tensors: list[Tensor]) -> UpdateRows:
        call, written = self._graph("whole", inputs)

        def update(order: Tensor) -> Tensor:
            written.restore()
            tensors[-1] = order
            return call(tensors)[0]

        return update

    def _two_graphs(self, inputs: Inputs, tensors: list[Tensor]) -> UpdateRows:
        """Gradient and step; between them processes add up, and controllers answer to the KL unless it is too high."""
        call, written = self._graph("gradient", inputs)
        size = sum(parameter.numel() for parameter in self.inputs["parameters"].values()) + len(Statistics._fields)
        step, _ = self._graph("step", {**self.inputs, "flat": torch.zeros(size)})

        def update(order: Tensor) -> Tensor:
            written.restore()
            tensors[-1] = order
            (flat,) = call(tensors)
            found = summed(flat, self.run.processes)
            if not exceeds(found.approx_kl, self.run.settings.kl_limit):
                step_minibatch_controllers(self.run, found, self.run.of_all(len(order)))
                self.prepared.fill_knobs(self.run.knobs.values)
            return step([*self._fixed, flat])[0]

        return update

    def _graph(self, name: str, inputs: Inputs) -> tuple[Call, WrittenBuffers]:
        key = (name, len(inputs["rows"]) if "rows" in inputs else None)
        if key not in self._calls:  # to find a graph in ``graphs`` takes as long as to call it
            plan, policy = self.prepared.plan, self.functions.policy
            graph = self.graphs.get(f"update, {name}", self.functions.named(name), inputs, policy, plan, writes=True)
            self._calls[key] = graph.call, WrittenBuffers(policy, graph.written)
        return self._calls[key]

    def _eagerly(self, order: Tensor, epoch: int) -> Tensor:
        with torch.enable_grad():
            row, _ = self.eager.minibatch(gathered_rows(self.rollout.rows, order), epoch)
        self.prepared.fill_knobs(self.run.knobs.values)
        self.state.advance(steps_in([row]))  # the optimizer has counted this step in its own state
        return row


def summed(flat: Tensor, processes: Processes) -> Statistics:
    """Adds up what ``UpdateFunctions.gradient`` returned in all processes, in place; the statistics in it.

    Maxima remain those of this process until the update ends.
    """
    row = flat[-len(Statistics._fields) :]
    if processes.count > 1:
        maxima = row[MAXIMA]
        processes.add(flat)
        row[MAXIMA] = maxima
    return Statistics.of_row(row)


def steps_in(rows: list[Tensor]) -> int:
    """The number of minibatches that took their step."""
    return int(torch.stack(rows)[:, COLUMNS.index("stepped")].sum()) if rows else 0


def require_compilable(policy: nn.Module, rollout: Rollout, optimizer: torch.optim.Optimizer) -> None:
    """Raises ``CompileError`` with the reason where no graph can stand for the update."""
    if not rollout.indexable:
        raise CompileError(f"{type(rollout.buffer).__name__} draws its minibatches by a method of its own")
    for name, module in unwrapped(policy).named_modules():
        if keeps_running_statistics(module) or is_dropout(module):
            raise CompileError(f"the policy's {name} is a {type(module).__name__}, which does more than compute")
    if hooks_before_step(optimizer) or hooks_after_step(optimizer):
        raise CompileError("the optimizer has hooks on its steps")
    if any(map(has_gradient_hooks, policy.parameters())):
        raise CompileError("a parameter of the policy has a hook on its gradient")
    try:
        groups_of(optimizer)
    except ValueError as error:
        raise CompileError(str(error)) from error
