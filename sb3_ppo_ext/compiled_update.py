"""A pass of PPO over a rollout through the compiled graph, with the eager update for what does not fill a minibatch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from sb3_ppo_ext.adam import AdamState, groups_of
from sb3_ppo_ext.compiled import Graph, Inputs, Plan, UpdateGraphs, signature, tensors_of
from sb3_ppo_ext.minibatches import Rollout, gathered_rows
from sb3_ppo_ext.policies import SB3Adapter, unwrapped
from sb3_ppo_ext.terms import STATISTICS
from sb3_ppo_ext.update import EARLY_STOP_FACTOR, Measured, Update, table_of

Graphs = dict[Any, Graph]

# What is added or clamped counts in the precision of Python's numbers; what is multiplied into a loss is rounded to the
# loss's own precision first: as torch does with a Python number in either place, so that eager and graph agree.
WIDE = frozenset({"clip_range", "clip_range_high", "clip_range_vf", "learning_rate"})


class CompiledUpdate:
    """As ``Update``, one call per minibatch. ``graphs`` is where compiled graphs are kept from rollout to rollout."""

    def __init__(self, eager: Update, graphs: Graphs, ratios: list[float]) -> None:
        assert isinstance(eager.adapter, SB3Adapter)
        self.eager = eager
        self.adapter = eager.adapter
        self.graphs = graphs
        self.early_stop_kl = math.nan
        policy = self.adapter.policy
        self.trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self.state = AdamState(eager.optimizer, list(self.trained.values()))
        self.plan = Plan(
            objective=eager.objective,
            groups=tuple(groups_of(eager.optimizer)),
            group_of=tuple(self.state.group_of),
            ratios=tuple(ratios),
            max_grad_norm=eager.max_grad_norm,
            knobs=tuple(name for name, value in eager.knobs.values._asdict().items() if value is not None),
            value_scaled=eager.value_scale is not None,
        )
        frozen = {name: p.detach() for name, p in policy.named_parameters() if not p.requires_grad}
        limit = math.inf if eager.target_kl is None else EARLY_STOP_FACTOR * eager.target_kl
        self.inputs: Inputs = {
            "parameters": {name: parameter.detach() for name, parameter in self.trained.items()},
            "constants": {**frozen, **dict(policy.named_buffers())},
            "first": self.state.first,
            "second": self.state.second,
            "step": self.state.steps[0].double(),
            "knobs": {name: torch.zeros((), dtype=_dtype(name)) for name in self.plan.knobs},
            "kl_limit": torch.tensor(limit),
        }

    def epoch(self, rollout: Rollout, batch_size: int) -> Measured:
        """All minibatches once, or until the sampled KL of one exceeds 1.5 ``target_kl``; then without its step."""
        batch_size = min(batch_size, rollout.size)
        inputs = {**self.inputs, "rollout": rollout.rows, "rows": torch.arange(batch_size)}
        self._fill_knobs()
        minibatch = self._in_two if self.eager.knobs.any_at("minibatch") else self._in_one
        update = minibatch(inputs)
        measured: list[Tensor] = []
        stopped = False
        for rows in rollout.orders(batch_size):
            measured.append(update(rows) if len(rows) == batch_size else self._eagerly(rollout, rows))
            if stopped := self._too_far(measured[-1]):
                measured[-1][-1] = math.nan  # no step was taken, so no norm
                break
        self.state.advance(self.inputs["step"].item())
        return Measured(table_of(measured), stopped)

    def _in_one(self, inputs: Inputs) -> Callable[[Tensor], Tensor]:
        """The update of the given rows as one graph."""
        call, tensors = self._graph("whole", inputs)

        @torch.no_grad()
        def update(rows: Tensor) -> Tensor:
            tensors[-1] = rows
            return call(*tensors)[0]

        return update

    def _in_two(self, inputs: Inputs) -> Callable[[Tensor], Tensor]:
        """As two graphs, between which controllers answer to the KL of this very minibatch."""
        call, tensors = self._graph("gradient", inputs)
        example = call(*tensors)

        def stepping(row: Tensor, gradients: Sequence[Tensor]) -> Inputs:
            return {**self.inputs, "row": row, "gradients": list(gradients)}

        step, _ = self._graph("step", stepping(example[0], example[1:]))

        @torch.no_grad()
        def update(rows: Tensor) -> Tensor:
            tensors[-1] = rows
            row, *gradients = call(*tensors)
            self.eager.step_controllers(row[:-1], len(rows))
            self._fill_knobs()
            step(*tensors_of(stepping(row, gradients)))
            return row

        return update

    def _fill_knobs(self) -> None:
        for name, tensor in self.inputs["knobs"].items():
            tensor.fill_(getattr(self.eager.knobs.values, name))

    def _graph(self, part: str, inputs: Inputs) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
        """The compiled part of the update and its tensors; ``rows``, another one for every call, is the last."""
        key = (part, self.plan, id(self.adapter.policy), signature(inputs))
        if key not in self.graphs:
            for old in [old for old in self.graphs if old[0] == part]:  # of another batch size or policy
                del self.graphs[old]
            parts = UpdateGraphs(self.adapter.policy, self.adapter, self.plan)
            self.graphs[key] = Graph(
                {"whole": parts.whole, "gradient": parts.gradient, "step": parts.step}[part], inputs
            )
        return self.graphs[key].call, tensors_of(inputs)

    def _eagerly(self, rollout: Rollout, order: Tensor) -> Tensor:
        """The truncated last minibatch: a graph of its own would double the time to compile."""
        self.state.advance(self.inputs["step"].item())
        loss, row = self.eager.evaluate(gathered_rows(rollout.rows, order), self.eager.knobs.values)
        if row[_APPROX_KL] > self.inputs["kl_limit"]:
            return torch.cat((row, row.new_full((1,), math.nan)))
        self.eager.step_controllers(row, len(order))
        row = self.eager.step(loss, row)
        self._fill_knobs()
        self.inputs["step"].copy_(self.state.steps[0])
        return row

    def _too_far(self, row: Tensor) -> bool:
        if self.eager.target_kl is None:
            return False
        self.early_stop_kl = row[_APPROX_KL].item()
        return self.early_stop_kl > EARLY_STOP_FACTOR * self.eager.target_kl


_APPROX_KL = STATISTICS.index("approx_kl")


def _dtype(knob: str) -> torch.dtype:
    return torch.float64 if knob in WIDE else torch.float32


def obstacle(policy: nn.Module, rollout: Rollout, optimizer: torch.optim.Optimizer) -> str | None:
    """Why the update cannot be compiled, or None."""
    if rollout.buffer.device.type != "cpu":
        return f"the device is {rollout.buffer.device}; only the CPU is supported in this version"
    if not rollout.has_rows:
        return f"{type(rollout.buffer).__name__} draws its minibatches by a method of its own"
    for name, module in unwrapped(policy).named_modules():
        if isinstance(module, (_BatchNorm, _DropoutNd)):
            return f"the policy's {name} is a {type(module).__name__}, which does more than compute"
    from torch._inductor.cpp_builder import get_cpp_compiler  # a second of imports, for who compiles

    try:
        groups_of(optimizer)
        get_cpp_compiler()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None
