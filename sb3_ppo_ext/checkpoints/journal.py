"""Text files that a run appends to (monitor.csv, progress.csv), brought back to where they were at a checkpoint.

What is in them after the checkpoint belongs to a future that did not happen, and is cut off. A program that is started
again often truncates them before it resumes: ``Monitor`` does when it is made. So each checkpoint copies what is new in
such a file into the folder of the run, where a resumed run finds it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from sb3_ppo_ext.saving import sync_folder

FOLDER = "logs_so_far"  # in the folder of the run
Entry = dict[str, Any]


def record(path: Path, run: Path) -> Entry | None:
    """Copies the file into the run's folder and returns its path, length and copy; None where there is no file."""
    if not path.is_file():
        return None
    copy = run / FOLDER / _name_of_copy(path)
    size = path.stat().st_size
    copy.parent.mkdir(parents=True, exist_ok=True)
    _bring_up_to(copy, path, size)
    return {"path": relative(path, run), "size": size, "copy": copy.name}


def relative(path: Path, run: Path) -> str:
    """A path inside the run's folder is returned relative to it, so that the folder may be moved."""
    path = path.absolute()
    return str(path.relative_to(run)) if path.is_relative_to(run) else str(path)


def _name_of_copy(path: Path) -> str:
    # With its first line: ``CSVOutputFormat`` writes all rows anew under a longer one.
    return f"{path.name}.{hashlib.sha256(f'{path}'.encode() + _first_line(path)).hexdigest()[:16]}"


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline()


def _bring_up_to(copy: Path, path: Path, size: int) -> None:
    is_new = not copy.exists()
    done = 0 if is_new else copy.stat().st_size
    if done == size:
        return
    with path.open("rb") as source, copy.open("r+b" if not is_new else "xb") as target:
        source.seek(done if done < size else 0)
        target.seek(done if done < size else 0)
        target.write(source.read(size - source.tell()))
        target.truncate(size)
        target.flush()
        os.fsync(target.fileno())
    if is_new:
        sync_folder(copy.parent)


def bring_back(entry: Entry, run: Path) -> Path | None:
    """Writes the file's earlier contents in place, for a monitor may have it open; None where the copy is not there."""
    path, copy = run / str(entry["path"]), run / FOLDER / str(entry["copy"])
    size = int(entry["size"])
    if not copy.is_file() or copy.stat().st_size < size:
        return None
    content = copy.read_bytes()[:size]
    os.truncate(copy, size)
    first = content[: content.find(b"\n") + 1]
    if path.is_file() and path.stat().st_size >= size and _first_line(path) == first:
        os.truncate(path, size)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "xb") as file:
        file.write(content)
        file.truncate(size)
    return path
