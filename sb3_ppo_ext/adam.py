"""Adam and AdamW as a pure function of tensors, for tracing; on the optimizer's own state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AdamGroup:
    """What is fixed about one parameter group; the learning rate is not."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool  # AdamW: the decay is of the parameter, not of the gradient


class AdamState:
    """The tensors of a torch Adam for some of its parameters, in their order, shared with the optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        group_of = {
            parameter: index for index, group in enumerate(optimizer.param_groups) for parameter in group["params"]
        }
        self.group_of = [group_of[parameter] for parameter in parameters]
        states = [self._state(optimizer, parameter) for parameter in parameters]
        self.first = [state["exp_avg"] for state in states]
        self.second = [state["exp_avg_sq"] for state in states]
        self.steps = [state["step"] for state in states]

    @staticmethod
    def _state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = optimizer.state[parameter]
        if not state:  # as Adam does it at its first step
            state["step"] = torch.zeros((), dtype=torch.get_default_dtype())
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def advance(self, count: float) -> None:
        """Sets every parameter's count of steps."""
        for step in self.steps:
            step.fill_(count)


def groups_of(optimizer: torch.optim.Optimizer) -> list[AdamGroup]:
    """The fixed settings of each group; ``ValueError`` where the optimizer is not one whose step is known here."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        raise ValueError(f"the optimizer is {type(optimizer).__name__}; Adam and AdamW are supported")
    groups = []
    for group in optimizer.param_groups:
        for option in ("amsgrad", "maximize", "differentiable", "capturable"):
            if group[option]:
                raise ValueError(f"the optimizer has {option}=True")
        decoupled = bool(group.get("decoupled_weight_decay", type(optimizer) is torch.optim.AdamW))
        beta1, beta2 = group["betas"]
        groups.append(AdamGroup(beta1, beta2, group["eps"], group["weight_decay"], decoupled))
    return groups


def adam_step(
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    gradient: Tensor,
    step: Tensor,
    rate: Tensor,
    group: AdamGroup,
) -> tuple[Tensor, Tensor, Tensor]:
    """The parameter and both moments after step number ``step`` (float64, counting from 1) at learning rate ``rate``.

    Kingma & Ba 2015, algorithm 1, in the order of operations of ``torch.optim.Adam``; Loshchilov & Hutter 2019 for
    the decoupled decay.
    """
    if group.weight_decay != 0 and group.decoupled:
        parameter = parameter * (1 - rate * group.weight_decay)
    elif group.weight_decay != 0:
        gradient = gradient + group.weight_decay * parameter
    first = first.lerp(gradient, 1 - group.beta1)
    second = second * group.beta2 + (1 - group.beta2) * gradient * gradient
    scale = (1 - group.beta2**step).sqrt()
    denominator = second.sqrt() / scale + group.eps
    return parameter - (rate / (1 - group.beta1**step)) * (first / denominator), first, second
