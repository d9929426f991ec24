"""Traced functions before they are recorded: TorchInductor compiles them, or they stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sb3_ppo_ext.engines.errors import CompileError, first_line
from sb3_ppo_ext.engines.tracing import COMPILER_LOCK
from sb3_ppo_ext.host.pytorch import compilers
from sb3_ppo_ext.process_wide import ignoring_warnings

# A compiler's warnings about the code it is given do not concern the user. How exact products of float32 are, which it
# warns of too, is set by torch.set_float32_matmul_precision.
SILENT_COMPILERS = ignoring_warnings()

Traced = Callable[..., Any]
Compile = Callable[[Traced, list[Tensor]], Traced]  # a traced function and its inputs -> the function to be called


def uncompiled(traced: Traced, tensors: list[Tensor]) -> Traced:
    """The function with its operations one by one."""
    return traced


def inductor(traced: Traced, tensors: list[Tensor], options: dict[str, Any] | None = None) -> Traced:
    """The function in fewer kernels, after tens of seconds; ``CompileError`` where TorchInductor or Triton fails."""
    try:
        with COMPILER_LOCK, SILENT_COMPILERS:
            return compilers.inductor(traced, tensors, options)
    except Exception as error:  # Triton's own ones too, and that there is no C compiler for its launchers
        raise CompileError(f"TorchInductor fails on it ({type(error).__name__}: {first_line(error)})") from error


def inductor_combo_kernels(traced: Traced, tensors: list[Tensor]) -> Traced:
    """``inductor``, with kernels that do not wait for each other in one."""
    return inductor(traced, tensors, compilers.COMBO_KERNELS)
