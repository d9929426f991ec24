"""Whenever a process dies, and whatever happens to its files, a usable checkpoint is found or an error raised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sb3_ppo_ext.checkpoints import folder
from sb3_ppo_ext.checkpoints.folder import FOLDER, MANIFEST, clean, prune, stored, write_checkpoint
from sb3_ppo_ext.checkpoints.reading import CheckpointWarning, newest, required
from sb3_ppo_ext.saving import part_name, save_atomically

TRACED = ("folder.py", "saving.py")


def holding(content: bytes) -> Any:
    return lambda file: file.write(content)


def write(run: Path, step: int, content: bytes = b"content") -> Path:
    return write_checkpoint(run, step, {"model.zip": holding(content), "state.pt": holding(b"s")}, {"finished": False})


def names(run: Path) -> list[str]:
    return [path.name for path in stored(run)]


def test_the_newest_checkpoint_is_the_one_with_the_most_steps_whatever_the_clock_says(tmp_path: Path) -> None:
    newer = write(tmp_path, 2048)
    older = write(tmp_path, 1024)
    os.utime(newer, (0, 0))
    found = newest(tmp_path)
    assert found is not None and found.path == newer and found.manifest["step"] == 2048
    assert names(tmp_path) == [newer.name, older.name]


def test_a_second_checkpoint_of_a_step_does_not_touch_the_first(tmp_path: Path) -> None:
    first, second = write(tmp_path, 64, b"first"), write(tmp_path, 64, b"second")
    assert (first / "model.zip").read_bytes() == b"first"
    assert required(tmp_path).path == second


def damage() -> dict[str, Callable[[Path], object]]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def reformat(path: Path) -> None:
        manifest = json.loads(path.read_text())
        del manifest["digest"]
        manifest["format"] = 99
        path.write_text(json.dumps({**manifest, "digest": folder._digest(manifest)}))

    return {
        "MANIFEST.json has been changed": lambda path: flip(path / MANIFEST),
        "MANIFEST.json cannot be read": lambda path: (path / MANIFEST).write_bytes(b""),
        "it has no MANIFEST.json": lambda path: (path / MANIFEST).unlink(),
        "it has format 99": lambda path: reformat(path / MANIFEST),
        "model.zip has 3 bytes instead of 7": lambda path: (path / "model.zip").write_bytes(b"con"),
        "model.zip has 0 bytes instead of 7": lambda path: (path / "model.zip").write_bytes(b""),
        "model.zip is damaged": lambda path: flip(path / "model.zip"),
        "state.pt is missing": lambda path: (path / "state.pt").unlink(),
    }


@pytest.mark.parametrize("reason", list(damage()))
def test_a_damaged_checkpoint_is_skipped_with_the_reason(reason: str, tmp_path: Path) -> None:
    good = write(tmp_path, 1)
    damage()[reason](write(tmp_path, 2))
    reason = reason if reason != "MANIFEST.json has been changed" else "MANIFEST.json (has been changed|cannot be read)"
    with pytest.warns(CheckpointWarning, match=rf"step_0*2 cannot be used: {reason}.*step_0*1 is used instead"):
        assert required(tmp_path).path == good


@pytest.mark.parametrize("reason", ["it has no MANIFEST.json", "model.zip is damaged"])
def test_where_all_are_damaged_nothing_begins_anew_silently(reason: str, tmp_path: Path) -> None:
    damage()[reason](write(tmp_path, 1))
    with pytest.raises(ValueError, match=f"none of its checkpoints can be used.*{reason}.*move"):
        newest(tmp_path)


def test_a_folder_without_checkpoints_is_said_to_be_one(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent") is None
    with pytest.raises(ValueError, match="there is no checkpoint to resume"):
        required(tmp_path)


def test_pruning_counts_usable_checkpoints_only(tmp_path: Path) -> None:
    paths = [write(tmp_path, step) for step in range(1, 6)]
    (paths[3] / MANIFEST).unlink()
    prune(tmp_path, 2)
    assert names(tmp_path) == [path.name for path in (paths[4], paths[3], paths[2])]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, 2, {"model.zip": holding(b"x"), "state.pt": full}, {})
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == names(tmp_path) == ["step_000000000001"]


def at_every_line(act: Callable[[], object], check: Callable[[], object]) -> int:
    """Runs ``act`` and calls ``check`` before each line of the files that write: what a kill there leaves on disk."""
    lines = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.endswith(TRACED):
            return None
        if event == "line":
            lines += 1
            sys.settrace(None)
            check()
            sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return lines


def test_a_kill_at_any_line_of_writing_and_pruning_leaves_a_usable_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, step)
    found: list[int] = []

    def act() -> None:
        write(tmp_path, 3)
        prune(tmp_path, 1)

    # A warning would be an error here: nothing torn has the name of a checkpoint.
    lines = at_every_line(act, lambda: found.append(required(tmp_path).manifest["step"]))
    assert lines > 50 and found == sorted(found) and set(found) == {2, 3}
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["step_000000000003"]


def test_what_a_living_process_or_another_host_writes_stays(tmp_path: Path) -> None:
    host = part_name("x").split(".")[2]
    parts = tmp_path / FOLDER
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = ended.pid
    for name in (f"{host}.{dead}", f"{host}.{os.getppid()}", f"elsewhere.{dead}", "faraway.1"):
        (parts / f".step_1.{name}.0a.part").mkdir(parents=True)
    os.utime(parts / ".step_1.faraway.1.0a.part", (0, 0))
    clean(tmp_path)
    left = sorted(path.name for path in parts.iterdir())
    assert left == sorted([f".step_1.{host}.{os.getppid()}.0a.part", f".step_1.elsewhere.{dead}.0a.part"])


def test_saving_a_file_removes_what_a_killed_process_left_of_it(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    name = part_name("model.zip").replace(str(os.getpid()), str(ended.pid))
    for left in (name, name.replace("model", "other")):
        (tmp_path / left).write_bytes(b"half")
    save_atomically(tmp_path / "model", holding(b"whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name.replace("model", "other"), "model.zip"])
