"""Libraries on disk: found by what they compute, compiled once, and never half written."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sb3_ppo_ext.engines.cpu import libraries as artifacts
from sb3_ppo_ext.engines.cpu.libraries import Job
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.engines.tracing import Inputs, trace
from sb3_ppo_ext.host.pytorch import compile_worker

POLICY = nn.Identity()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder."""
    monkeypatch.setenv("SB3_PPO_EXT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def affine(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    return (inputs["a"] * 2 + inputs["b"],)


def job_of(function: Any = affine, rows: int = 3, threads: int = 1) -> Job:
    inputs = {"a": torch.ones(rows), "b": torch.ones(rows)}
    return Job(trace(function, inputs, POLICY), list(inputs.values()), threads)


def test_a_library_is_named_after_all_that_it_depends_on() -> None:
    others = [
        job_of(lambda inputs: (inputs["a"] * 3 + inputs["b"],)),
        job_of(rows=4),
        job_of(threads=2),
        job_of(lambda inputs: (inputs["a"] * torch.tensor([1.0, 2.0, 3.0]) + inputs["b"],)),
        job_of(lambda inputs: (inputs["a"] * torch.tensor([1.0, 2.0, 4.0]) + inputs["b"],)),
    ]
    paths = [job_of().path, *(other.path for other in others)]
    assert job_of().path == paths[0]
    assert len(set(paths)) == len(paths)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_graphs_are_compiled_once_and_then_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: Inputs = {"a": torch.ones(3), "b": torch.arange(3.0)}
    compiled: list[str] = []

    class Shown:
        def __enter__(self) -> None:
            compiled.append("compiled")

        def __exit__(self, *_: object) -> None:
            pass

    first = Graphs(Shown)
    with first.compiled_in_parallel():
        unfinished = first.get("one", affine, inputs, POLICY)
        first.get("other", affine, inputs, POLICY)  # one library for both
        with pytest.raises(RuntimeError, match="before it was compiled"):
            unfinished.call([])
    call = first.get("one", affine, inputs, POLICY).call
    torch.testing.assert_close(call([torch.ones(3), torch.arange(3.0)])[0], torch.tensor([2.0, 3.0, 4.0]))
    assert len(compiled) == 1 and first.made == 2
    second = Graphs(Shown)  # as of another process
    second.get("one", affine, inputs, POLICY)
    assert len(compiled) == 1
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    broken = job_of().path
    whole = broken.read_bytes()

    def replaced(content: bytes) -> None:
        broken.unlink()  # this process still has it mapped
        broken.write_bytes(content)

    def compiled_again(jobs: list[Job]) -> None:
        assert [job.path for job in jobs] == [broken]
        replaced(whole)

    replaced(whole[:10_000])
    monkeypatch.setattr(artifacts, "compile_all", compiled_again)
    Graphs(Shown).get("one", affine, inputs, POLICY).call([torch.ones(3), torch.ones(3)])
    assert len(compiled) == 2


def test_an_interrupted_compilation_leaves_neither_file_nor_process(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def communicate(self, *args: Any, **kwargs: Any) -> Any:
            started.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        artifacts.compile_all([job_of()])
    assert started[0].poll() is not None
    assert list(cache.iterdir()) == []


def test_all_but_the_longest_graph_compile_at_a_low_priority(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[str], *args: Any, **kwargs: Any) -> None:
            commands.append(command)
            super().__init__([command[0], "-c", "raise SystemExit(1)"], *args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    long = job_of(lambda inputs: (inputs["a"] * 3 + inputs["b"] * 2,))
    with pytest.raises(CompileError, match="status 1"):
        artifacts.compile_all([job_of(), long, job_of()])
    assert [command[-1] == compile_worker.LOW_PRIORITY for command in commands] == [True, False, True]


def test_a_compilation_that_fails_names_the_reason(cache: Path) -> None:
    def unknown(inputs: Inputs) -> tuple[torch.Tensor, ...]:
        return (torch.ops.sb3_ppo_ext_test.unheard_of(inputs["a"]),)

    library = torch.library.Library("sb3_ppo_ext_test", "DEF")
    library.define("unheard_of(Tensor a) -> Tensor")
    library.impl("unheard_of", lambda a: a + 1, "CPU")
    library.impl("unheard_of", torch.empty_like, "Meta")
    with pytest.raises(CompileError, match="unheard_of"):  # the child process has no such operation
        artifacts.compile_all([job_of(unknown)])
    assert list(cache.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(CompileError, match="SB3_PPO_EXT_CACHE_DIR"):
        artifacts.compile_all([job_of()])


def test_without_a_home_folder_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SB3_PPO_EXT_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(CompileError, match=r"home directory.*SB3_PPO_EXT_CACHE_DIR"):
        artifacts.folder()


def test_the_least_recently_used_go_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MAX_LIBRARIES", 2)
    cache.mkdir()
    for age, name in enumerate(("new.so", "older.so", "oldest.so")):
        (cache / name).touch()
        os.utime(cache / name, (1e9 - age, 1e9 - age))
    (cache / "removed by another process.so").symlink_to("nowhere")  # it is listed and has no time
    artifacts.compile_all([])
    assert sorted(path.name for path in cache.iterdir()) == ["new.so", "older.so"]
