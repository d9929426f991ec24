"""The insides of ``torch.nn.Module``, its layers and its tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def parameter_table(module: nn.Module) -> dict[str, Any]:
    """The dict from which the module's parameters are read at each access; a tensor put there is used instead."""
    return module._parameters


def buffer_table(module: nn.Module) -> dict[str, Any]:
    """The dict from which the module's buffers are read at each access, and to which assignments write."""
    return module._buffers


def hook_tables(module: nn.Module) -> list[Any]:
    """The containers of a module's hooks: they stay the same objects, and are empty where there is no hook."""
    return [getattr(module, name) for name in HOOKS]


def shared_hook_tables() -> list[Any]:
    """The containers of the hooks on all modules, in the same order."""
    return [getattr(all_modules, f"_global{name}") for name in HOOKS]


def without_compile(module: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` has wrapped, which is its attribute ``_orig_mod``; else the module."""
    wrapped: nn.Module = getattr(module, "_orig_mod", module)
    return wrapped


def has_gradient_hooks(parameter: Tensor) -> bool:
    """Whether ``register_hook`` has put a hook on the parameter: ``_backward_hooks`` is None or empty where none is."""
    return bool(parameter._backward_hooks)


def is_convolution(module: nn.Module) -> bool:
    """Every convolution, transposed and lazy ones included, derives from ``_ConvNd``."""
    return isinstance(module, _ConvNd)


def keeps_running_statistics(module: nn.Module) -> bool:
    """Normalizations with statistics of all batches derive from ``_NormBase``; those by batch also count batches."""
    return isinstance(module, _NormBase) and (isinstance(module, _BatchNorm) or module.track_running_stats)


def is_dropout(module: nn.Module) -> bool:
    """Every dropout derives from ``_DropoutNd``."""
    return isinstance(module, _DropoutNd)


def storage_id(tensor: Tensor) -> int:
    """A number that tensors have in common where they share memory; fake tensors, which have no memory, have it too."""
    return int(tensor.untyped_storage()._cdata)
