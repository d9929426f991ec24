"""The insides of ``torch.optim``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as all_optimizers


def hooks_before_step(optimizer: Optimizer) -> list[Any]:
    """The hooks that ``step`` calls first: the optimizer's and those of all optimizers."""
    return [*optimizer._optimizer_step_pre_hooks.values(), *all_optimizers._global_optimizer_pre_hooks.values()]


def hooks_after_step(optimizer: Optimizer) -> list[Any]:
    """The hooks that ``step`` calls last: the optimizer's and those of all optimizers."""
    return [*optimizer._optimizer_step_post_hooks.values(), *all_optimizers._global_optimizer_post_hooks.values()]


@contextmanager
def gradients_divided_by(optimizer: Optimizer, divisor: Tensor) -> Iterator[None]:
    """A fused Adam divides the gradients by its attribute ``grad_scale`` as it reads them, for ``GradScaler``."""
    optimizer.grad_scale = divisor  # type: ignore[attr-defined]  # set and deleted from outside, by GradScaler too
    try:
        yield
    finally:
        del optimizer.grad_scale  # type: ignore[attr-defined]


def fresh_adam_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    """The state that an Adam without ``capturable``, ``fused`` and ``amsgrad`` gives a parameter in its first step."""
    return {
        "step": torch.zeros((), dtype=torch.get_default_dtype()),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


def decouples_weight_decay(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether the decay is of the parameter, as in AdamW: an option of the group, which 2.10 and later save with it."""
    return bool(group.get("decoupled_weight_decay", type(optimizer) is torch.optim.AdamW))
