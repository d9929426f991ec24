"""What a child process runs to compile a traced graph into a shared library: ``python compile_worker.py JOB [aside]``.

A process of its own keeps the compiler's memory out of the training and lets several graphs be compiled at once. It
imports torch and nothing else, this package included.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

OPTIONS = {
    # tanh by the exponential function costs a third of the library function and is within 1.2e-7 of it (absolute).
    "cpp.use_decompose_tanh": True,
    "size_asserts": False,  # who calls the library knows the shapes
    "aot_inductor.precompile_headers": False,  # making them takes longer than the few compilations they would speed up
    "aot_inductor.enable_line_tables": False,  # nobody reads the source, and they are two thirds of the library
}
ASIDE = "aside"
NO_COMPILER = 3  # exit status


def compile_graph(traced: Any, shapes: list[Any], output: str, threads: int) -> None:
    """Writes the library to ``output``, whose name ends in .so; raises whatever the compiler does."""
    import torch
    from torch._inductor import config

    tensors = tuple(torch.empty_strided(shape, stride, dtype=dtype).zero_() for shape, stride, dtype in shapes)
    options = {**OPTIONS, "cpp.threads": threads, "aot_inductor.output_path": output}
    known = {name: value for name, value in options.items() if name in config.get_config_copy()}
    with torch.no_grad():
        try:
            # Without trying out each instruction set of the processor first, which takes as long as all the rest.
            with nothing_tried_out(), both_halves_at_once():
                torch._inductor.aot_compile(traced, tensors, options={**known, "cpp.vec_isa_ok": True})
        except Exception:  # a compiler older than the processor
            torch._inductor.aot_compile(traced, tensors, options=known)


@contextmanager
def nothing_tried_out() -> Iterator[None]:
    """Extensions for half precision and integers are asked about by a compilation each; here they are left out."""
    from torch._inductor.cpu_vec_isa import VecISA

    known: Any = VecISA
    check = known.check_build
    known.check_build = lambda *_: False
    try:
        yield
    finally:
        known.check_build = check


@contextmanager
def both_halves_at_once() -> Iterator[None]:
    """A graph is two files of C++: the kernels are compiled beside the long one that calls them, not after it."""
    from torch._inductor.cpp_builder import CppBuilder

    known: Any = CppBuilder
    build = known.build
    with ThreadPoolExecutor(1) as beside:
        begun: list[Future[None]] = []

        def build_beside(self: Any) -> None:
            if self._name.endswith(".wrapper"):
                begun.append(beside.submit(build, self))
                return
            if not self._name.endswith(".kernel"):  # what links them
                while begun:
                    begun.pop().result()
            build(self)

        known.build = build_beside
        try:
            yield
        finally:
            known.build = build


def main() -> int:
    """Does the job; the reason why it cannot be done is the last line of the standard error."""
    warnings.simplefilter("ignore")  # the compiler's own deprecations are no user's business
    gc.disable()  # looking for cycles takes an eighth of the time, and the process is short
    if ASIDE in sys.argv[2:] and hasattr(os, "nice"):
        os.nice(3)  # more would leave it next to nothing beside other programs: two minutes instead of 42 s
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        print(_in_a_line(error), file=sys.stderr)
        return NO_COMPILER
    try:
        with open(sys.argv[1], "rb") as file:
            compile_graph(*pickle.load(file))
    except Exception as error:
        print(f"{type(error).__name__}: {_in_a_line(error)}", file=sys.stderr)
        return 1
    return 0


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: its neighbours are no top-level modules
    sys.exit(main())
