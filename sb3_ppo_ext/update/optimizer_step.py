"""A step against clipped gradients: clipping, then one step of the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from sb3_ppo_ext.host.pytorch import tensor_lists
from sb3_ppo_ext.host.pytorch.optimizers import gradients_divided_by, hooks_before_step


class OptimizerStep(Protocol):
    """Clips the gradients that ``backward`` has left, then takes one step of the optimizer."""

    def clip(self, max_norm: float) -> Tensor:
        """Scales the gradients so that their norm is at most ``max_norm``; returns the norm before."""
        ...

    def step(self) -> None:
        """Takes one step of the optimizer."""
        ...


class TorchStep:
    """The functions of torch: ``clip_grad_norm_`` and ``optimizer.step``."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        self.optimizer = optimizer
        self.parameters = parameters

    def clip(self, max_norm: float) -> Tensor:
        """Scales the gradients so that their norm is at most ``max_norm``; returns the norm before."""
        return nn.utils.clip_grad_norm_(self.parameters, max_norm)

    def step(self) -> None:
        """Takes one step of the optimizer."""
        self.optimizer.step()


class FusedAdamStep(TorchStep):
    """An Adam in one kernel, which divides the gradients by the clipping factor as it reads them.

    Norms are in float32, whatever the gradients are in. Equal to ``TorchStep`` up to rounding.
    """

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Computes the divisor and returns the norm; the gradients are scaled in ``step``."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        dtypes = dict.fromkeys(gradient.dtype for gradient in gradients)  # in order: so is the sum
        alike = [[gradient for gradient in gradients if gradient.dtype == dtype] for dtype in dtypes]
        norms = [norm for group in alike for norm in tensor_lists.norm(group, 2.0, torch.float32)]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        self.divisor = torch.clamp((norm + 1e-6) / max_norm, min=1.0)
        return norm

    def step(self) -> None:
        """Takes one step against the gradients over the divisor."""
        with gradients_divided_by(self.optimizer, self.divisor):
            super().step()


def steps_in_one_kernel(optimizer: torch.optim.Optimizer) -> bool:
    """Whether every step is that of a fused torch Adam or AdamW, and no hook reads the clipped gradients."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return False
    return all(group["fused"] for group in optimizer.param_groups) and not hooks_before_step(optimizer)


@contextmanager
def torch_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> Iterator[OptimizerStep]:
    """The steps of an epoch by torch's functions."""
    yield TorchStep(optimizer, parameters)
