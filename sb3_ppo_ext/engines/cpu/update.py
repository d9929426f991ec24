"""A pass of PPO over a rollout through the compiled graph, with the eager update for what does not fill a minibatch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from sb3_ppo_ext.engines.channels_last import convolves, images_channels_last
from sb3_ppo_ext.engines.cpu.libraries import Call, CompileError
from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.engines.substitution import WrittenBuffers
from sb3_ppo_ext.engines.traced_adam import groups_of
from sb3_ppo_ext.engines.traced_update import UpdateGraphs
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of
from sb3_ppo_ext.engines.update_inputs import UpdateInputs
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.statistics import STATISTICS
from sb3_ppo_ext.policies.adapter import SB3Adapter, unwrapped
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.rollout.rows import gathered_rows
from sb3_ppo_ext.update.eager import Measured, Update, table_of

UpdateRows = Callable[[Tensor], Tensor]  # rows of the rollout -> statistics of their update
Updaters = tuple[UpdateRows, UpdateRows | None]  # of a whole minibatch, and of a smaller last one


class CompiledUpdate:
    """As ``Update``, one call per minibatch. ``graphs`` keeps the compiled graphs from rollout to rollout.

    A last minibatch that is smaller has a graph of its own where ``compile_last`` says that this pays.
    """

    def __init__(self, eager: Update, graphs: Graphs, ratios: list[float], *, compile_last: bool) -> None:
        assert isinstance(eager.adapter, SB3Adapter)
        self.eager = eager
        self.adapter = eager.adapter
        self.graphs = graphs
        self.compile_last = compile_last
        self._calls: dict[tuple[str, int | None], tuple[Call, WrittenBuffers]] = {}
        self._made: tuple[Minibatch | None, int, Updaters | None] = (None, 0, None)
        prepared = UpdateInputs(eager, ratios)
        self.state, self.plan, self.inputs = prepared.state, prepared.plan, prepared.inputs
        self._fixed = tensors_of(self.inputs)

    @property
    def early_stop_kl(self) -> float:
        """The sampled KL that was looked at last."""
        return self.eager.early_stop_kl

    @torch.no_grad()
    def epoch(self, rollout: Rollout, batch_size: int) -> Measured:
        """All minibatches once, or until the sampled KL of one exceeds 1.5 ``target_kl``; then without its step."""
        batch_size = min(batch_size, rollout.size)
        self._fill_knobs()
        whole, last = self._updaters(rollout, batch_size)
        measured: list[Tensor] = []
        counted = 0  # rows whose steps are in the optimizer's own count
        stopped = False
        try:
            for rows in rollout.orders(batch_size):
                if rows.numel() == batch_size:
                    measured.append(whole(rows))
                elif last is not None:
                    measured.append(last(rows))
                else:
                    self.state.advance(int(torch.stack(measured)[:, -1].isfinite().sum()))
                    counted = len(measured) + 1
                    measured.append(self._eagerly(rollout, rows))
                if stopped := self.eager.too_far(measured[-1]):
                    measured[-1][-1] = math.nan  # no step was taken, so no norm
                    break
        finally:  # also where the user interrupts
            table = table_of(measured) if measured else np.empty((0, len(STATISTICS) + 1))
            self.state.advance(int(np.isfinite(table[counted:, -1]).sum()))
        return Measured(table, stopped)

    def prepare(self, rollout: Rollout, batch_size: int) -> None:
        """Compiles what ``epoch`` will call; ``CompileError`` with the reason where that fails."""
        self._updaters(rollout, min(batch_size, rollout.size))

    def _updaters(self, rollout: Rollout, batch_size: int) -> Updaters:
        rows, size, updaters = self._made
        if rows is not rollout.rows or size != batch_size:  # other ones where advantages were computed anew
            if convolves(self.adapter.policy):  # once for all minibatches
                observation = images_channels_last(rollout.rows.observation)
                rollout.rows = rollout.rows._replace(observation=observation)
            last = rollout.size % batch_size
            updaters = (
                self._updater(rollout, batch_size),
                self._updater(rollout, last) if last and self.compile_last else None,
            )
            self._made = (rollout.rows, batch_size, updaters)
        assert updaters is not None
        return updaters

    def _updater(self, rollout: Rollout, size: int) -> UpdateRows:
        """The update of ``size`` given rows."""
        inputs = {**self.inputs, "rollout": rollout.rows, "rows": torch.arange(size)}
        tensors = [*self._fixed, *tensors_of({"rollout": rollout.rows, "rows": inputs["rows"]})]
        return (self._in_two if self.eager.knobs.any_at("minibatch") else self._in_one)(inputs, tensors)

    def _in_one(self, inputs: Inputs, tensors: list[Tensor]) -> UpdateRows:
        """As one graph."""
        call, written = self._graph("whole", inputs)

        def update(rows: Tensor) -> Tensor:
            written.bring_back()
            tensors[-1] = rows
            return call(tensors)[0]

        return update

    def _in_two(self, inputs: Inputs, tensors: list[Tensor]) -> UpdateRows:
        """As two graphs, between which controllers answer to the KL of this very minibatch."""
        call, written = self._graph("gradient", inputs)

        def stepping(row: Tensor, gradients: Sequence[Tensor]) -> Inputs:
            return {**self.inputs, "row": row, "gradients": list(gradients)}

        shapes = [torch.empty_like(parameter) for parameter in self.inputs["parameters"].values()]
        step, _ = self._graph("step", stepping(torch.zeros(len(STATISTICS) + 1), shapes))

        def update(rows: Tensor) -> Tensor:
            written.bring_back()
            tensors[-1] = rows
            row, *gradients = call(tensors)
            if not self.eager.too_far(row):
                self.eager.step_controllers(row[:-1], len(rows))
                self._fill_knobs()
                step([*self._fixed, row, *gradients])
            return row

        return update

    def _fill_knobs(self) -> None:
        for name, tensor in self.inputs["knobs"].items():
            tensor.fill_(getattr(self.eager.knobs.values, name))

    def _graph(self, part: str, inputs: Inputs) -> tuple[Call, WrittenBuffers]:
        key = (part, len(inputs["rows"]) if "rows" in inputs else None)
        if key not in self._calls:  # looking a graph up takes as long as calling it
            parts = UpdateGraphs(self.adapter.policy, self.adapter, self.plan)
            function = {"whole": parts.whole, "gradient": parts.gradient, "step": parts.step}[part]
            policy = self.adapter.policy
            graph = self.graphs.get(f"update, {part}", function, inputs, policy, self.plan, writes=True)
            self._calls[key] = graph.call, WrittenBuffers(policy, graph.written)
        return self._calls[key]

    def _eagerly(self, rollout: Rollout, order: Tensor) -> Tensor:
        with torch.enable_grad():
            loss, row = self.eager.evaluate(gathered_rows(rollout.rows, order), self.eager.knobs.values)
            if self.eager.too_far(row):
                return torch.cat((row, row.new_full((1,), math.nan)))
            self.eager.step_controllers(row, len(order))
            row = self.eager.step(loss, row)
        self._fill_knobs()
        self.state.advance(1)  # as the optimizer has counted itself
        return row


def require_compilable(policy: nn.Module, rollout: Rollout, optimizer: torch.optim.Optimizer) -> None:
    """``CompileError`` with the reason where the update is not one that a graph can stand for."""
    if not rollout.has_rows:
        raise CompileError(f"{type(rollout.buffer).__name__} draws its minibatches by a method of its own")
    for name, module in unwrapped(policy).named_modules():
        tracks = isinstance(module, _NormBase) and (isinstance(module, _BatchNorm) or module.track_running_stats)
        if tracks or isinstance(module, _DropoutNd):
            raise CompileError(f"the policy's {name} is a {type(module).__name__}, which does more than compute")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise CompileError("the optimizer has hooks on its steps")
    if any(parameter._backward_hooks for parameter in policy.parameters()):
        raise CompileError("a parameter of the policy has a hook on its gradient")
    try:
        groups_of(optimizer)
    except ValueError as error:
        raise CompileError(str(error)) from error
