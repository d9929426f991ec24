"""Compiled libraries called without Python's global interpreter lock (GIL), so that two compute at the same time.

torch's runner of a library holds the GIL while it computes. Here the same functions of its C interface (torch's
``aoti_runtime/interface.h``) are called by ctypes, which releases it. A call takes some tens of microseconds more, so
this is for graphs that compute for milliseconds.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class LibraryWithoutGIL:
    """The function of a library that ``compile_worker`` has written: tensors of the CPU in, tensors out."""

    def __init__(self, path: Path) -> None:
        """RuntimeError where the library has another interface."""
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
            raise RuntimeError(f"PyTorch {torch.__version__} compiled {path} to another interface ({error})") from error
        self._path = path
        self._outputs = outputs.value

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """The results, in new tensors; RuntimeError where the library fails."""
        handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)  # the library frees them
        inputs = (ctypes.c_void_p * len(handles))(*(_address(handle, None) for handle in handles))
        outputs = (ctypes.c_void_p * self._outputs)()
        _require(self._run(self._container, inputs, len(inputs), outputs, len(outputs), None, None), self._path)
        results: list[Tensor] = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(
            [_capsule(address, None, None) for address in outputs]
        )
        return results


@cache
def without_gil(path: Path) -> LibraryWithoutGIL:
    """The library at ``path``, loaded once: it stays as long as the process."""
    return LibraryWithoutGIL(path)


def _require(status: int, path: Path) -> None:
    if status != 0:
        raise RuntimeError(f"the library {path} failed; its reason is above, on the standard error")
