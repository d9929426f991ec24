"""Compiled libraries called without Python's lock, so that two of them compute beside each other.

torch's own runner keeps the lock while a library computes. Here the same functions of its C interface (torch's
``aoti_runtime/interface.h``) are called by ctypes, which lets go of it. That takes some tens of microseconds more: for
graphs that compute for milliseconds.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sb3_ppo_ext.engines.cpu.libraries import CompileError

_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class UnlockedLibrary:
    """The function of a library that ``artifacts`` has compiled: tensors of the CPU in, tensors out."""

    def __init__(self, path: Path) -> None:
        """``CompileError`` where it has not the interface that is known here."""
        self._container = ctypes.c_void_p()
        outputs = ctypes.c_size_t()
        try:
            library = ctypes.CDLL(str(path))
            self._run = library.AOTInductorModelContainerRun
            create = library.AOTInductorModelContainerCreateWithDevice
            create.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p]
            array: list[Any] = [ctypes.c_void_p, ctypes.c_size_t]
            self._run.argtypes = [ctypes.c_void_p, *array, *array, ctypes.c_void_p, ctypes.c_void_p]
            _require(create(ctypes.byref(self._container), 1, b"cpu", None), path)
            weakref.finalize(self, library.AOTInductorModelContainerDelete, self._container)
            _require(library.AOTInductorModelContainerGetNumOutputs(self._container, ctypes.byref(outputs)), path)
        except (OSError, AttributeError) as error:
            raise CompileError(f"PyTorch {torch.__version__} compiled {path} to another interface ({error})") from error
        self._path = path
        self._outputs = outputs.value

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """The results, in tensors of their own."""
        handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)  # the library takes them over
        given = (ctypes.c_void_p * len(handles))(*(_address(handle, None) for handle in handles))
        made = (ctypes.c_void_p * self._outputs)()
        _require(self._run(self._container, given, len(given), made, len(made), None, None), self._path)
        results: list[Tensor] = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(
            [_capsule(address, None, None) for address in made]
        )
        return results


@cache
def unlocked(path: Path) -> UnlockedLibrary:
    """The library there; loaded once, for it stays as long as the process."""
    return UnlockedLibrary(path)


def _require(status: int, path: Path) -> None:
    if status != 0:
        raise CompileError(f"the library {path} failed; its reason is above, on the standard error")
