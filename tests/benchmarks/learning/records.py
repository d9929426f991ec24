"""The file of records: one line of JSON for each finished run, appended in one write."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[3] / "docs" / "runs"


def identity(record: Mapping[str, Any]) -> str:
    """What makes two runs the same run: task, seed and every setting. The arm's name is a label only."""
    return json.dumps([record["task"], record["seed"], record["settings"]], sort_keys=True)


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file, [] where there is none. The end of a line that a kill cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def missing(file: str, orders: Iterable[dict[str, Any]]) -> tuple[Path, list[dict[str, Any]]]:
    """The file of records, a path or a name in ``FOLDER``, and the orders that it has no record of; prints both."""
    path = Path(file) if os.sep in file else FOLDER / f"{file}.jsonl"
    known = {identity(record) for record in read(path)}
    todo = [order for order in orders if identity(order) not in known]
    print(f"{path}: {len(known)} records, {len(todo)} runs to do", flush=True)
    return path, todo


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a line and waits until the disk has it. What a kill left of an unfinished line is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, separators=(",", ":")) + "\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        discard_cut_line(descriptor)
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard_cut_line(descriptor: int) -> None:
    """Shortens the file to its last whole line."""
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, size, 0)
    end = text.rfind(b"\n") + 1
    if end != size:
        os.ftruncate(descriptor, end)
