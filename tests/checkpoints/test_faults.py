"""What goes wrong on disk: training goes on, the last good checkpoint stays, one warning, and it is tried again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback

from sb3_ppo_ext import PPOX, Checkpoints, CheckpointWarning
from sb3_ppo_ext.checkpoints import folder, writing
from sb3_ppo_ext.checkpoints.folder import FOLDER, stored
from sb3_ppo_ext.checkpoints.lock import locked
from sb3_ppo_ext.checkpoints.reading import required
from tests.checkpoints.runs import SETTINGS, every_update
from tests.environments import walk

TOTAL = 96  # six updates


def made() -> PPOX:
    return PPOX("MlpPolicy", walk(), seed=1, **SETTINGS)


class During(BaseCallback):
    """Calls ``begin`` in the third rollout and ``end`` in the last but one."""

    def __init__(self, begin: Callable[[], object], end: Callable[[], object]) -> None:
        super().__init__()
        self.begin, self.end = begin, end

    def _on_step(self) -> bool:
        if self.num_timesteps == 40:
            self.begin()
        if self.num_timesteps == 72:
            self.end()
        return True


def file_size_limit(patch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write = folder._written

    def limited(path: Path, writer: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        try:
            return write(path, writer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    patch.setattr(folder, "_written", limited)


def full_device(patch: pytest.MonkeyPatch) -> None:
    def full(path: Path, write: Any) -> None:
        with open("/dev/full", "wb") as file:
            write(file)

    patch.setattr(folder, "_written", full)


def no_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(writing, "free_bytes", lambda _: 10)


def not_writable(patch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *arguments: Any, **options: Any) -> None:  # root may write everywhere
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    patch.setattr(Path, "mkdir", refused)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "file size": (file_size_limit, "File too large"),
    "device": (full_device, "No space left on device"),
    "room": (no_room, "10 bytes are free"),
    "permission": (not_writable, "Permission denied"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full and limits of Linux")
@pytest.mark.parametrize("name", list(FAULTS))
def test_a_failed_checkpoint_does_not_end_the_run(name: str, tmp_path: Path) -> None:
    fault, text = FAULTS[name]
    steps: list[int] = []
    patch = pytest.MonkeyPatch()

    class Stored(BaseCallback):
        def _on_step(self) -> bool:
            steps.append(required(tmp_path).manifest["step"] if self.num_timesteps > 32 else 0)
            return True

    during = During(lambda: fault(patch), patch.undo)
    with pytest.warns(CheckpointWarning, match=f"no checkpoint could be written.*{text}.*goes on") as warned:
        try:
            made().learn(TOTAL, [during, Stored()], checkpoint=every_update(tmp_path, keep=1))
        finally:
            patch.undo()
    assert len([w for w in warned if w.category is CheckpointWarning]) == 1
    assert steps[71] == 32 and required(tmp_path).manifest["step"] == TOTAL
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


def test_the_last_checkpoint_failing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    during = During(lambda: no_room(monkeypatch), lambda: None)
    with pytest.warns(CheckpointWarning), pytest.raises(OSError, match="training has ended and its last checkpoint"):
        made().learn(TOTAL, during, checkpoint=every_update(tmp_path))
    assert required(tmp_path).manifest["step"] == 32


def test_tries_become_rarer_while_they_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr("sb3_ppo_ext.checkpoints.writing.time.monotonic", lambda: now[0])
    writer = writing.CheckpointWriter(Checkpoints(tmp_path, every="10s"))
    waits = []
    for failures in range(7):
        writer._failures, writer.last_try, now[0] = failures, 0.0, 0.0
        while not writer.due():
            now[0] += 10
        waits.append(now[0])
    assert waits == [10, 20, 40, 80, 160, 160, 160]


def test_two_trainings_cannot_have_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ValueError, match="another training holds this folder"):
        made().learn(32, checkpoint=Checkpoints(tmp_path))
    program = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX);"
        "file.write('process 7 on elsewhere'); file.flush(); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / ".lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(ValueError, match=r"holds this folder.*process 7 on elsewhere"):
            made().learn(32, checkpoint=Checkpoints(tmp_path))
    finally:
        holder.kill()
        holder.communicate()
    made().learn(32, checkpoint=Checkpoints(tmp_path))


def test_a_folder_that_has_a_run_is_not_given_to_another(tmp_path: Path) -> None:
    made().learn(32, checkpoint=Checkpoints(tmp_path))
    assert Checkpoints(tmp_path).exist() and not Checkpoints(tmp_path / "other").exist()
    with pytest.raises(ValueError, match=r"holds checkpoints of a run.*step_000000000032.*PPOX.resume"):
        made().learn(32, checkpoint=Checkpoints(tmp_path))
    assert [path.name for path in stored(tmp_path)] == ["step_000000000032"]


def test_a_run_resumed_twice_goes_on_once(tmp_path: Path) -> None:
    made().learn(32, checkpoint=Checkpoints(tmp_path))
    assert required(tmp_path).manifest["finished"]
    first, second = (PPOX.resume(tmp_path, walk(), total_timesteps=64, device="cpu") for _ in range(2))
    first.learn()
    with pytest.raises(ValueError, match="has gone on since it was resumed here"):
        second.learn()


def test_a_finished_run_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made().learn(32, checkpoint=Checkpoints(tmp_path))
    resumed = PPOX.resume(tmp_path, walk(), device="cpu")
    assert resumed.learn() is resumed and resumed.num_timesteps == 32
    assert "the run is finished, with 32 timesteps" in capsys.readouterr().out


def test_damage_is_said_and_the_checkpoint_before_is_resumed(tmp_path: Path) -> None:
    made().learn(64, checkpoint=every_update(tmp_path))
    (stored(tmp_path)[0] / "model.zip").write_bytes(b"")
    with pytest.warns(CheckpointWarning, match="model.zip has 0 bytes"):
        resumed = PPOX.resume(tmp_path, walk(), device="cpu")
    assert resumed.num_timesteps == 48
    resumed.learn()
    assert required(tmp_path).manifest["finished"]


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "parsecs": (lambda path: Checkpoints(path, every="5 parsecs"), "every='5 parsecs': a duration is needed"),
    "negative": (lambda path: Checkpoints(path, every=-1), "every=-1: a duration"),
    "keep": (lambda path: Checkpoints(path, keep=0), "keep=0: a whole number"),
    "empty": (lambda path: PPOX.resume(path / "absent", walk()), "there is no checkpoint to resume"),
    "n_envs": (lambda path: PPOX.resume(path, vector(2)), "it has 2 environments, and the run in .* has 1"),
    "spaces": (lambda path: PPOX.resume(path, walk("single")), "Observation spaces do not match"),
    "class": (lambda path: Other.resume(path, walk()), "its run is one of PPOX; resume it by PPOX.resume"),
    "callbacks": (
        lambda path: PPOX.resume(path, walk(), During(print, print), total_timesteps=64, device="cpu").learn(),
        "the run was trained with no callback, and is resumed with .During",
    ),
    "other length": (lambda path: PPOX.resume(path, walk(), device="cpu").learn(64), "the run was begun with 32"),
    "shorter": (
        lambda path: PPOX.resume(path, walk(), total_timesteps=16, device="cpu").learn(),
        "the run has 32 timesteps already",
    ),
    "no settings": (lambda path: made().learn(32, checkpoint=3), "checkpoint=3: a Checkpoints"),  # type: ignore[arg-type]
    "no length": (lambda path: made().learn(), "total_timesteps=None"),
    "folder": (lambda path: made().learn(32, checkpoint=Checkpoints(path / "file" / "run")), "name another folder"),
}


class Other(PPOX):
    pass


def vector(count: int) -> Any:
    from stable_baselines3.common.vec_env import DummyVecEnv

    return DummyVecEnv([walk] * count)


@pytest.mark.parametrize("name", list(BAD))
def test_a_mistake_is_one_error_and_nothing_is_touched(name: str, tmp_path: Path) -> None:
    made().learn(32, checkpoint=Checkpoints(tmp_path))
    (tmp_path / "file").write_text("")
    before = sorted(os.walk(tmp_path))
    act, text = BAD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=text):
            act(tmp_path)
    assert sorted(os.walk(tmp_path)) == before


def test_a_run_s_folder_may_be_moved(tmp_path: Path) -> None:
    made().learn(64, checkpoint=every_update(tmp_path / "here"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    resumed = PPOX.resume(tmp_path / "there", walk(), total_timesteps=96, device="cpu")
    resumed.learn()
    assert required(tmp_path / "there").manifest["step"] == 96 and not (tmp_path / "here").exists()
