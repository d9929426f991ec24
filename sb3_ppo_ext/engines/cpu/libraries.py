"""Traced functions as shared libraries on disk: compiled once per machine, loaded in milliseconds after that.

AOTInductor writes and calls the library; a call costs a few microseconds, without guards and without Python. A library
is found by the text of the traced graph itself, so that no change of a policy, however small, finds an old one.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from sb3_ppo_ext.engines.cpu.turns import turn
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.host.pytorch import compile_worker
from sb3_ppo_ext.host.pytorch.compilers import load_library
from sb3_ppo_ext.host.pytorch.graphs import Varying, make_picklable
from sb3_ppo_ext.host.pytorch.without_gil import without_gil
from sb3_ppo_ext.saving import remove

Call = Callable[[list[Tensor]], list[Tensor]]

MAX_LIBRARIES = 128  # of some 0.4 MiB each
SEAL = 32  # bytes at the end of each: the digest of all before


class Job(NamedTuple):
    """One graph, for inputs of these shapes but for ``varying`` sizes, computing with this number of threads."""

    traced: GraphModule
    inputs: Sequence[Tensor]
    threads: int
    varying: Varying = ()

    @property
    def path(self) -> Path:
        """The path of its library, which need not exist yet."""
        text = hashlib.sha256(self.traced.code.encode())
        text.update(f"{torch.__version__}{_processor()}{compile_worker.OPTIONS}{self.threads}".encode())
        for index, tensor in enumerate(self.inputs):
            dimensions = {dimension for varied, dimension in self.varying if varied == index}
            text.update(f"{tensor.dtype}{_shape_text(tensor, dimensions)}{tensor.device}".encode())
        constants = {**vars(self.traced), **dict(self.traced.named_buffers())}
        for name in sorted(constants):
            if isinstance(constants[name], Tensor):
                text.update(name.encode() + constants[name].detach().cpu().numpy().tobytes())
        return folder() / f"{text.hexdigest()[:32]}.so"

    @property
    def length(self) -> int:
        """The number of operations, which the time to compile grows with."""
        return len(self.traced.graph.nodes)

    def write(self, path: Path, library: Path) -> None:
        """Writes the job for the child process that is to write ``library``."""
        make_picklable(self.traced)
        shapes = [(tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in self.inputs]
        path.write_bytes(pickle.dumps((self.traced, shapes, str(library), self.threads, self.varying)))


def _shape_text(tensor: Tensor, varying: set[int]) -> str:
    """The shape and strides; with sizes that may be any, the others alone."""
    if not varying:
        return f"{tuple(tensor.shape)}{tensor.stride()}"
    return str([None if dimension in varying else size for dimension, size in enumerate(tensor.shape)])


def folder() -> Path:
    """The folder of the libraries: ``SB3_PPO_EXT_CACHE_DIR``, or a folder in the user's cache."""
    # Not TORCHINDUCTOR_CACHE_DIR: torch sets that itself, to a folder that the next reboot empties.
    if chosen := os.environ.get("SB3_PPO_EXT_CACHE_DIR"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sb3_ppo_ext"
    except RuntimeError as error:  # a user without a home
        raise CompileError(f"{error}; name a folder in SB3_PPO_EXT_CACHE_DIR") from error


@cache
def _processor() -> str:
    """The features that the compiler's ``-march=native`` depends on: machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        import platform

        return f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


def find(path: Path) -> Call | None:
    """The function of the library; None where there is no library, or one that is damaged or cannot be loaded."""
    try:
        content = path.read_bytes()
        # To load half a library, as a full disk leaves it, would end the process.
        return load(path) if hashlib.sha256(content[:-SEAL]).digest() == content[-SEAL:] else None
    except (OSError, CompileError):
        return None


def load(path: Path) -> Call:
    """The library's function: tensors in the order of the graph's inputs -> its outputs."""
    try:
        run: Call = load_library(path)
    except (RuntimeError, AttributeError) as error:
        raise CompileError(f"PyTorch {torch.__version__} cannot load {path} ({error})") from error
    with suppress(OSError):  # another user's file, for example
        os.utime(path)  # the least recently used go first
    return run


def load_without_gil(path: Path) -> Call:
    """The function of a library that is in use, called without the GIL; ``CompileError`` with the reason."""
    try:
        return without_gil(path)
    except RuntimeError as error:
        raise CompileError(str(error)) from error


def compile_all(jobs: Sequence[Job]) -> None:
    """Compiles the graphs at the same time; a library appears under its path when it is complete.

    ``CompileError`` with the reason; an interrupted compilation leaves nothing.
    """
    cache_folder = folder()
    with ExitStack() as stack:
        try:
            cache_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = tempfile.TemporaryDirectory(prefix=".compiling-", dir=cache_folder)
            scratch = Path(stack.enter_context(temporary))
            for path in sorted({job.path for job in jobs}):  # in one order, so that no two wait for each other
                stack.enter_context(turn(path.with_suffix(".lock")))
        except OSError as error:
            raise CompileError(f"{error}; name a folder that can be written to in SB3_PPO_EXT_CACHE_DIR") from error
        jobs = [job for job in jobs if find(job.path) is None]  # others may have compiled them meanwhile
        children = []
        longest = max((job.length for job in jobs), default=0)
        for index, job in enumerate(jobs):
            child_folder = scratch / str(index)
            child_folder.mkdir()
            job.write(child_folder / "job", child_folder / "graph.so")
            child = stack.enter_context(_child(child_folder, low_priority=job.length < longest))
            stack.callback(child.kill)
            children.append(child)
        for index, (child, job) in enumerate(zip(children, jobs, strict=True)):
            _, stderr = child.communicate()
            _require_success(child.returncode, stderr.strip())
            library = scratch / str(index) / "graph.so"
            with library.open("ab") as file:
                file.write(hashlib.sha256(library.read_bytes()).digest())
            os.replace(library, job.path)
    for path in sorted(cache_folder.glob("*.so"), key=_last_used)[:-MAX_LIBRARIES]:
        remove(path)


def _last_used(path: Path) -> float:
    """The time of the library's last use; 0 where another process has removed it meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _child(child_folder: Path, *, low_priority: bool) -> subprocess.Popen[str]:
    """The process of one job; with ``low_priority`` it leaves the processors to the longest, for which all wait."""
    options = [compile_worker.LOW_PRIORITY] if low_priority else []
    command = [sys.executable, compile_worker.__file__, str(child_folder / "job"), *options]
    # Its temporary files too are to be in the folder that is removed.
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(child_folder / "inductor")}
    return subprocess.Popen(
        command, cwd=child_folder, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _require_success(status: int, stderr: str) -> None:
    reason = stderr.splitlines()[-1] if stderr else f"the compiling process ended with status {status}"
    if status == compile_worker.NO_COMPILER:
        raise CompileError(f"there is no C++ compiler ({reason}); install one, for example g++ (apt install g++)")
    if status != 0:
        raise CompileError(reason)
