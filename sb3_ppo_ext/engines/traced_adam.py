"""Adam and AdamW as a pure function of tensors, for tracing, on the optimizer's own state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sb3_ppo_ext.host.pytorch.optimizers import decouples_weight_decay, fresh_adam_state


@dataclass(frozen=True)
class AdamGroup:
    """The options of one parameter group that a graph holds fixed: all but the learning rate."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool  # AdamW: the decay is of the parameter, not of the gradient


class AdamState:
    """The state of a torch Adam for some of its parameters, in their order: the optimizer's own tensors.

    Parameters with the same group and number of steps make a *step group*: they share the powers of the betas that
    correct the bias. A parameter that the optimizer does not hold is in none, and gets a state that nothing reads.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        groups = groups_of(optimizer)
        held = {parameter: index for index, group in enumerate(optimizer.param_groups) for parameter in group["params"]}
        states = [
            self._state(optimizer, parameter) if parameter in held else fresh_adam_state(parameter)
            for parameter in parameters
        ]
        self.first = [state["exp_avg"] for state in states]
        self.second = [state["exp_avg_sq"] for state in states]
        self.steps = [state["step"] for state in states]
        keys = [
            (held[parameter], step.item()) if parameter in held else None
            for parameter, step in zip(parameters, self.steps, strict=True)
        ]
        step_groups = sorted({key for key in keys if key is not None})
        self.step_group_of = tuple(None if key is None else step_groups.index(key) for key in keys)
        self.step_groups = tuple(groups[index] for index, _ in step_groups)
        self.param_group_of = tuple(index for index, _ in step_groups)
        self._counts = [count for _, count in step_groups]
        device = parameters[0].device
        self.powers = [[torch.zeros((), dtype=torch.float64, device=device) for _ in range(2)] for _ in step_groups]
        self.advance(0)

    @staticmethod
    def _state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = optimizer.state[parameter]
        if not state:
            state.update(fresh_adam_state(parameter))
        return state

    def advance(self, steps: int) -> None:
        """Adds ``steps`` to all counts, and sets the powers to those before the next step."""
        self._counts = [count + steps for count in self._counts]
        for index, step in zip(self.step_group_of, self.steps, strict=True):
            if index is not None:
                step.fill_(self._counts[index])
        for powers, group, count in zip(self.powers, self.step_groups, self._counts, strict=True):
            powers[0].fill_(group.beta1**count)
            powers[1].fill_(group.beta2**count)


def groups_of(optimizer: torch.optim.Optimizer) -> list[AdamGroup]:
    """The fixed options of each parameter group; ``ValueError`` for an optimizer whose step is not computed here."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        raise ValueError(f"the optimizer is {type(optimizer).__name__}; Adam and AdamW are supported")
    groups = []
    for group in optimizer.param_groups:
        for option in ("amsgrad", "maximize", "differentiable", "capturable"):
            if group[option]:
                raise ValueError(f"the optimizer has {option}=True")
        decoupled = decouples_weight_decay(optimizer, group)
        beta1, beta2 = group["betas"]
        groups.append(AdamGroup(beta1, beta2, group["eps"], group["weight_decay"], decoupled))
    return groups


class StepSize(NamedTuple):
    """What the parameters of a step group share in a step: 0-d tensors."""

    rate: Tensor  # the learning rate
    corrected: Tensor  # the same over 1 - beta1^t, the bias of the first moment
    root: Tensor  # sqrt(1 - beta2^t), the bias of the root of the second moment


def step_size(rate: Tensor, powers: tuple[Tensor, Tensor]) -> StepSize:
    """For beta1 and beta2 (float64) to the power of the step's number t, counting from 1.

    A graph has it once for all parameters: to trace it for each took a fifth of the step's operations.
    """
    return StepSize(rate, rate / (1 - powers[0]), (1 - powers[1]).sqrt())


def adam_step(
    parameter: Tensor, first: Tensor, second: Tensor, *, gradient: Tensor, size: StepSize, group: AdamGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """The parameter and both moments after a step.

    Kingma & Ba 2015, algorithm 1, in the order of operations of ``torch.optim.Adam``; Loshchilov & Hutter 2019 for
    the decoupled decay.
    """
    if group.weight_decay != 0 and group.decoupled:
        parameter = parameter * (1 - size.rate * group.weight_decay)
    elif group.weight_decay != 0:
        gradient = gradient + group.weight_decay * parameter
    first = first.lerp(gradient, 1 - group.beta1)
    second = second * group.beta2 + (1 - group.beta2) * gradient * gradient
    denominator = second.sqrt() / size.root + group.eps
    return parameter - size.corrected * (first / denominator), first, second
