"""Step after step against clipped gradients: by the optimizer itself, or Adam's arithmetic with fewer, longer tensors.

A network of twelve small tensors costs Adam a hundred calls of a few hundred nanoseconds' arithmetic each. Over tensors
laid end to end the same operations give every element the same bits, if no element moves from the vectorised body of a
loop into its scalar tail or back: there a fused multiply-add may round differently. So only tensors that fill whole
vectors are merged, and not into more than one thread's share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizer_hooks

WHOLE_VECTORS = 64  # elements; a multiple of what any CPU's loops take at once
MERGED = 32768  # elements; from here on torch divides a loop among threads


class Descent(Protocol):
    """What an epoch does with the gradients that ``backward`` leaves."""

    def clip(self, max_norm: float) -> Tensor:
        """Scales the gradients to ``max_norm`` at most; their norm before."""
        ...

    def step(self) -> None:
        """One step of the optimizer."""
        ...


class PlainDescent:
    """The optimizer itself."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        self.optimizer = optimizer
        self.parameters = parameters

    def clip(self, max_norm: float) -> Tensor:
        """By torch's ``clip_grad_norm_``."""
        return nn.utils.clip_grad_norm_(self.parameters, max_norm)

    def step(self) -> None:
        """By ``optimizer.step``."""
        self.optimizer.step()


class FusedDescent(PlainDescent):
    """An Adam in one kernel, which divides the gradients by what clips them as it reads them.

    By the interface through which ``torch.amp.GradScaler`` has them divided. Norms are in float32, whatever the
    gradients are in. Equal to ``PlainDescent`` up to rounding.
    """

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Finds the factor; the gradients are scaled in ``step``."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        dtypes = dict.fromkeys(one.dtype for one in gradients)  # in order: so is the sum
        alike = [[one for one in gradients if one.dtype == dtype] for dtype in dtypes]
        norms = [norm for group in alike for norm in torch._foreach_norm(group, 2.0, torch.float32)]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        self.divisor = torch.clamp((norm + 1e-6) / max_norm, min=1.0)
        return norm

    def step(self) -> None:
        """See ``PlainDescent``."""
        self.optimizer.grad_scale = self.divisor  # type: ignore[attr-defined]
        try:
            super().step()
        finally:
            del self.optimizer.grad_scale  # type: ignore[attr-defined]


def steps_in_one_kernel(optimizer: torch.optim.Optimizer) -> bool:
    """Whether every step is that of a torch Adam or AdamW with ``fused``, and nobody looks at clipped gradients."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return False
    hooks = (*optimizer._optimizer_step_pre_hooks, *optimizer_hooks._global_optimizer_pre_hooks)  # see the gradients
    return all(group["fused"] for group in optimizer.param_groups) and not hooks


@contextmanager
def descending(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> Iterator[Descent]:
    """For as many steps as nobody looks at the optimizer: its state and the gradients are up to date afterwards."""
    if not can_merge(optimizer, parameters):
        yield PlainDescent(optimizer, parameters)
        return
    descent = AdamDescent(optimizer, parameters)
    try:
        yield descent
    finally:
        descent.hand_back()


def can_merge(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> bool:
    """Whether every step is that of a torch Adam or AdamW, as it comes, over all of the parameters and nothing else."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    odd = any(group[name] for name in ("amsgrad", "maximize", "differentiable", "capturable", "fused"))
    coupled = group["weight_decay"] != 0 and not group["decoupled_weight_decay"]
    numbers = all(isinstance(number, (int, float)) for number in (group["lr"], *group["betas"]))
    hooks = (
        *(optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks),
        *(optimizer_hooks._global_optimizer_pre_hooks, optimizer_hooks._global_optimizer_post_hooks),
    )
    if odd or coupled or not numbers or not group["foreach"] or any(hooks) or "step" in vars(optimizer):
        return False
    states = [optimizer.state.get(parameter) for parameter in parameters]
    return (
        [id(one) for one in group["params"]] == [id(one) for one in parameters]
        and all(state and _is_ordinary(one, state) for one, state in zip(parameters, states, strict=True))
        and len({_count(state) for state in states if state}) == 1
    )


def _count(state: dict[str, Tensor]) -> float:
    return float(state["step"])


def _is_ordinary(parameter: nn.Parameter, state: dict[str, Tensor]) -> bool:
    return all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
        for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"])
    )


class AdamDescent:
    """Kingma & Ba 2015, algorithm 1, in the order of operations of ``torch.optim.Adam`` with ``foreach``.

    The moments of merged tensors live here until they are handed back.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.plain = PlainDescent(optimizer, parameters)
        self.group = optimizer.param_groups[0]
        self.states = [optimizer.state[parameter] for parameter in parameters]
        self.count = _count(self.states[0])
        whole = [index for index, one in enumerate(parameters) if one.numel() % WHOLE_VECTORS == 0]
        totals = accumulate(parameters[index].numel() for index in whole)
        self.merged = [index for index, total in zip(whole, totals, strict=True) if total < MERGED]
        self.others = [index for index in range(len(parameters)) if index not in self.merged]
        self.first = self._joined([state["exp_avg"] for state in self.states])
        self.second = self._joined([state["exp_avg_sq"] for state in self.states])
        self.scale = [torch.empty_like(one) for one in self.second]
        self.parted_first, self.parted_scale = self._parted(self.first), self._parted(self.scale)
        self.gradients: list[Tensor] = []
        self.handed_back = False

    def _joined(self, tensors: list[Tensor]) -> list[Tensor]:
        """The merged tensors as one, and the others."""
        others = [tensors[index] for index in self.others]
        return [torch.cat([tensors[index].reshape(-1) for index in self.merged]), *others] if self.merged else others

    def _parted(self, joined: list[Tensor]) -> list[Tensor]:
        """One tensor, or view of the merged one, for every parameter."""
        if not self.merged:
            return joined
        views = torch.split(joined[0], [self.parameters[index].numel() for index in self.merged])
        parted = dict(zip((*self.merged, *self.others), (*views, *joined[1:]), strict=True))
        return [parted[index].view_as(parameter) for index, parameter in enumerate(self.parameters)]

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """As torch's ``clip_grad_norm_``."""
        gradients = self._gradients()
        if len(gradients) < len(self.parameters):  # the optimizer leaves the others where they are
            self.gradients = []
            self.hand_back()
        if self.handed_back:
            return self.plain.clip(max_norm)
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0)), 2.0)
        self.gradients = self._joined(gradients)
        torch._foreach_mul_(self.gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return norm

    @torch.no_grad()
    def step(self) -> None:
        """As ``optimizer.step``."""
        if self.handed_back:
            self.plain.step()
            return
        (beta1, beta2), rate, decay = self.group["betas"], self.group["lr"], self.group["weight_decay"]
        self.count += 1
        if decay != 0:
            torch._foreach_mul_(self.parameters, 1 - rate * decay)
        torch._foreach_lerp_(self.first, self.gradients, 1 - beta1)
        torch._foreach_mul_(self.second, beta2)
        torch._foreach_addcmul_(self.second, self.gradients, self.gradients, 1 - beta2)
        for scale, second in zip(self.scale, self.second, strict=True):
            torch.sqrt(second, out=scale)
        torch._foreach_div_(self.scale, (1 - beta2**self.count) ** 0.5)
        torch._foreach_add_(self.scale, self.group["eps"])
        size = -rate / (1 - beta1**self.count)
        torch._foreach_addcdiv_(self.parameters, self.parted_first, self.parted_scale, size)

    @torch.no_grad()
    def hand_back(self) -> None:
        """Moments, counts of steps and clipped gradients to whom they belong."""
        if self.handed_back:
            return
        self.handed_back = True
        torch._foreach_copy_([state["exp_avg"] for state in self.states], self.parted_first)
        torch._foreach_copy_([state["exp_avg_sq"] for state in self.states], self._parted(self.second))
        for state in self.states:
            state["step"].fill_(self.count)
        gradients = self._gradients()
        if self.gradients and len(gradients) == len(self.parameters):
            torch._foreach_copy_(gradients, self._parted(self.gradients))
