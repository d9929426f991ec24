"""Adam's arithmetic over merged tensors: the bits of ``torch.optim.Adam`` with ``foreach``, in fewer, longer loops.

A network of twelve small tensors costs Adam a hundred calls of a few hundred nanoseconds' arithmetic each. Over tensors
laid end to end the same operations give every element the same bits, if no element moves from the vectorised body of a
loop into its scalar tail or back: there a fused multiply-add may round differently. So only tensors that fill whole
vectors are merged, and not into more than one thread's share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn

from sb3_ppo_ext.host.pytorch import tensor_lists
from sb3_ppo_ext.host.pytorch.optimizers import decouples_weight_decay, hooks_after_step, hooks_before_step
from sb3_ppo_ext.update.optimizer_step import OptimizerStep, TorchStep

WHOLE_VECTORS = 64  # elements; a multiple of what any CPU's loops take at once
MERGED = 32768  # elements; from here on torch divides a loop among threads


@contextmanager
def merged_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> Iterator[OptimizerStep]:
    """The steps of an epoch; the optimizer's state and the gradients are up to date only at the end of the block."""
    if not can_merge(optimizer, parameters):
        yield TorchStep(optimizer, parameters)
        return
    step = MergedAdamStep(optimizer, parameters)
    try:
        yield step
    finally:
        step.hand_back()


def can_merge(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> bool:
    """Whether every step is that of a plain torch Adam or AdamW over exactly these parameters, all in float32."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    odd = any(group[name] for name in ("amsgrad", "maximize", "differentiable", "capturable", "fused"))
    coupled = group["weight_decay"] != 0 and not decouples_weight_decay(optimizer, group)
    numbers = all(isinstance(number, (int, float)) for number in (group["lr"], *group["betas"]))
    hooks = hooks_before_step(optimizer) or hooks_after_step(optimizer)
    if odd or coupled or not numbers or not group["foreach"] or hooks or "step" in vars(optimizer):
        return False
    states = [state for parameter in parameters if (state := optimizer.state.get(parameter))]
    return (
        list(map(id, group["params"])) == list(map(id, parameters))
        and len(states) == len(parameters)
        and all(map(_is_ordinary, parameters, states))
        and len({_count(state) for state in states}) == 1
    )


def _count(state: dict[str, Tensor]) -> float:
    return float(state["step"])


def _is_ordinary(parameter: nn.Parameter, state: dict[str, Tensor]) -> bool:
    return all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
        for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"])
    )


class MergedAdamStep:
    """Kingma & Ba 2015, algorithm 1, in the order of operations of ``torch.optim.Adam`` with ``foreach``.

    The moments of merged tensors are copies until ``hand_back`` writes them into the optimizer's state.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.plain = TorchStep(optimizer, parameters)
        self.group = optimizer.param_groups[0]
        self.states = [optimizer.state[parameter] for parameter in parameters]
        self.count = _count(self.states[0])
        whole = [index for index, parameter in enumerate(parameters) if parameter.numel() % WHOLE_VECTORS == 0]
        totals = accumulate(parameters[index].numel() for index in whole)
        self.merged = [index for index, total in zip(whole, totals, strict=True) if total < MERGED]
        self.others = [index for index in range(len(parameters)) if index not in self.merged]
        self.first = self._joined([state["exp_avg"] for state in self.states])
        self.second = self._joined([state["exp_avg_sq"] for state in self.states])
        self.scale = [torch.empty_like(second) for second in self.second]
        self.split_first, self.split_scale = self._split(self.first), self._split(self.scale)
        self.gradients: list[Tensor] = []
        self.handed_back = False

    def _joined(self, tensors: list[Tensor]) -> list[Tensor]:
        """The merged tensors as one, and the others."""
        others = [tensors[index] for index in self.others]
        return [torch.cat([tensors[index].reshape(-1) for index in self.merged]), *others] if self.merged else others

    def _split(self, joined: list[Tensor]) -> list[Tensor]:
        """One tensor, or view of the merged one, for every parameter."""
        if not self.merged:
            return joined
        views = torch.split(joined[0], [self.parameters[index].numel() for index in self.merged])
        tensors = dict(zip((*self.merged, *self.others), (*views, *joined[1:]), strict=True))
        return [tensors[index].view_as(parameter) for index, parameter in enumerate(self.parameters)]

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Does the same as torch's ``clip_grad_norm_``."""
        gradients = self._gradients()
        if len(gradients) < len(self.parameters):  # the optimizer leaves the others where they are
            self.gradients = []
            self.hand_back()
        if self.handed_back:
            return self.plain.clip(max_norm)
        norm: Tensor = torch.linalg.vector_norm(torch.stack(tensor_lists.norm(gradients, 2.0)), 2.0)
        self.gradients = self._joined(gradients)
        tensor_lists.mul_(self.gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return norm

    @torch.no_grad()
    def step(self) -> None:
        """Does the same as ``optimizer.step``."""
        if self.handed_back:
            self.plain.step()
            return
        (beta1, beta2), rate, decay = self.group["betas"], self.group["lr"], self.group["weight_decay"]
        self.count += 1
        if decay != 0:
            tensor_lists.mul_(self.parameters, 1 - rate * decay)
        tensor_lists.lerp_(self.first, self.gradients, 1 - beta1)
        tensor_lists.mul_(self.second, beta2)
        tensor_lists.addcmul_(self.second, self.gradients, self.gradients, 1 - beta2)
        for scale, second in zip(self.scale, self.second, strict=True):
            torch.sqrt(second, out=scale)
        tensor_lists.div_(self.scale, (1 - beta2**self.count) ** 0.5)
        tensor_lists.add_(self.scale, self.group["eps"])
        size = -rate / (1 - beta1**self.count)
        tensor_lists.addcdiv_(self.parameters, self.split_first, self.split_scale, size)

    @torch.no_grad()
    def hand_back(self) -> None:
        """Writes moments and counts of steps into the optimizer's state, and clipped gradients into the parameters."""
        if self.handed_back:
            return
        self.handed_back = True
        tensor_lists.copy_([state["exp_avg"] for state in self.states], self.split_first)
        tensor_lists.copy_([state["exp_avg_sq"] for state in self.states], self._split(self.second))
        for state in self.states:
            state["step"].fill_(self.count)
        gradients = self._gradients()
        if self.gradients and len(gradients) == len(self.parameters):
            tensor_lists.copy_(gradients, self._split(self.gradients))
