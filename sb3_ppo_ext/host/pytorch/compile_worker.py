"""The program of a child process that compiles a traced graph into a shared library.

    python compile_worker.py JOB [low-priority]

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
    "size_asserts": False,  # the library is called with the shapes it was compiled for
    "aot_inductor.precompile_headers": False,  # making them takes longer than the few compilations they would speed up
    "aot_inductor.enable_line_tables": False,  # for debuggers only, and two thirds of the library
}
HEADERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "headers")
LOW_PRIORITY = "low-priority"
NO_COMPILER = 3  # exit status


def compile_graph(traced: Any, shapes: list[Any], output: str, threads: int, varying: Any = ()) -> None:
    """Writes the library to ``output``, whose name ends in .so; raises whatever the compiler does.

    The library is for inputs of these shapes; their sizes in ``varying`` (index of the input, dimension) may be any.
    """
    import torch
    from torch._inductor import config

    tensors = tuple(torch.empty_strided(shape, stride, dtype=dtype).zero_() for shape, stride, dtype in shapes)
    if varying:
        traced = graph_for_sizes(traced, tensors, varying)
    options = {**OPTIONS, "cpp.threads": threads, "aot_inductor.output_path": output}
    known = {name: value for name, value in options.items() if name in config.get_config_copy()}
    with torch.no_grad():
        try:
            # The instruction set of the processor is taken as it is: trying it out takes as long as all the rest.
            with no_trial_builds(), own_headers(), rules_of_types_once(), wrapper_beside_kernels():
                torch._inductor.aot_compile(traced, tensors, options={**known, "cpp.vec_isa_ok": True})
        except Exception:  # a compiler older than the processor, or other headers of PyTorch
            torch._inductor.aot_compile(traced, tensors, options=known)


def graph_for_sizes(function: Any, tensors: Any, varying: Any) -> Any:
    """``function`` of these tensors as a graph whose input sizes in ``varying`` are symbols.

    Assumed: ``make_fx`` traces in the mode of fake tensors that it is called with.
    """
    from torch._dynamo.source import ConstantSource
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    mode, chosen = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), set(varying)

    def fake(index: int, tensor: Any) -> Any:
        of_sizes = [
            DimDynamic.DYNAMIC if (index, dimension) in chosen else DimDynamic.STATIC
            for dimension in range(tensor.dim())
        ]
        context: Any = StatelessSymbolicContext(of_sizes)
        return mode.from_tensor(tensor, symbolic_context=context, source=ConstantSource(f"input{index}"))

    fakes = [fake(index, tensor) for index, tensor in enumerate(tensors)]
    return make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*fakes)


@contextmanager
def no_trial_builds() -> Iterator[None]:
    """Leaves out the extensions for half precision and integers, for each of which a file would be compiled first.

    That is three files or more, by the processor: 1.1 of 18.6 s for the update of a first model.
    """
    from torch._inductor.cpu_vec_isa import VecISA

    instruction_set: Any = VecISA
    check = instruction_set.check_build
    instruction_set.check_build = lambda *_: False
    try:
        yield
    finally:
        instruction_set.check_build = check


@contextmanager
def own_headers() -> Iterator[None]:
    """Lets compilers find ``headers/regex`` before the standard library's: 3.4 instead of 6.2 s for the file that calls
    the kernels.

    Assumed: PyTorch's headers take nothing from the others that they do not include themselves.
    """
    before = os.environ.get("CPATH")
    os.environ["CPATH"] = os.pathsep.join([HEADERS, before] if before else [HEADERS])
    try:
        yield
    finally:
        del os.environ["CPATH"]
        if before is not None:
            os.environ["CPATH"] = before


@contextmanager
def rules_of_types_once() -> Iterator[None]:
    """Makes the table of the operations' result types once, which inductor fills anew for every operation of a kernel.

    That is a tenth of its time, 0.6 s for the update of a first model. Assumed: the table is one object for all.
    """
    from torch._inductor.dtype_propagation import DtypePropagationOpsHandler

    handler: Any = DtypePropagationOpsHandler
    fill = handler.__init__

    def fill_once(self: Any) -> None:
        fill(self)
        handler.__init__ = lambda _: None

    handler.__init__ = fill_once
    try:
        yield
    finally:
        handler.__init__ = fill


@contextmanager
def wrapper_beside_kernels() -> Iterator[None]:
    """Compiles the two files of C++ of a graph at the same time: the long one that calls the kernels, and those.

    For the update of a first model they took 6.8 and 3.1 s, and 4 and 3.1 s by ``own_headers``.
    """
    from torch._inductor.cpp_builder import CppBuilder

    builder: Any = CppBuilder
    build = builder.build
    with ThreadPoolExecutor(1) as executor:
        wrappers: list[Future[None]] = []

        def build_at_once(self: Any) -> None:
            if self._name.endswith(".wrapper"):
                wrappers.append(executor.submit(build, self))
                return
            if not self._name.endswith(".kernel"):  # the one that links them
                while wrappers:
                    wrappers.pop().result()
            build(self)

        builder.build = build_at_once
        try:
            yield
        finally:
            builder.build = build


def main() -> int:
    """Does the job; where it cannot be done, the reason is the last line of the standard error."""
    warnings.simplefilter("ignore")  # the compiler's own deprecations do not concern the user
    gc.disable()  # searching for cycles takes an eighth of the time, and the process is short
    if LOW_PRIORITY in sys.argv[2:] and hasattr(os, "nice"):
        os.nice(3)  # at 10 it is starved by other programs: two minutes instead of 42 s
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
