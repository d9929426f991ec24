"""TorchInductor: graphs compiled in this process, and shared libraries of graphs loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._triton import has_triton

__all__ = ["COMBO_KERNELS", "has_triton", "inductor", "load_library"]

# Kernels that do not wait for each other become one: for updates of many small tensors a third fewer.
COMBO_KERNELS: dict[str, Any] = {"combo_kernels": True}


def inductor(traced: Any, tensors: list[Tensor], options: dict[str, Any] | None = None) -> Callable[..., Any]:
    """A graph compiled for inputs like these, of the same arguments and results; called without guards."""
    from torch._inductor import compile as compile_graph  # slow to import

    compiled: Callable[..., Any] = compile_graph(traced, [*tensors], options)
    return compiled


def load_library(path: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """The function of a library for the CPU that ``compile_worker`` has written: inputs in order -> results in order.

    RuntimeError where it cannot be loaded, AttributeError where this version has another interface.
    """
    run: Callable[[list[Tensor]], list[Tensor]] = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1).run
    return run
