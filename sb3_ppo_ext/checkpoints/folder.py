"""The checkpoints of a run on disk: each is a folder that is complete, with a manifest, or not there at all.

``RUN/checkpoints/step_000000409600/`` holds the files and ``MANIFEST.json`` with the size and SHA-256 of each. It is
written under a hidden name; files, manifest and names reach the disk before it is renamed, and older checkpoints are
removed after that. A process that is killed at any moment leaves every checkpoint that was finished before.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sb3_ppo_ext.distributed.processes import ALONE, Processes, together
from sb3_ppo_ext.saving import part_name, remove, remove_stale_parts, sync_folder, write_to_disk

FORMAT = 1
MANIFEST = "MANIFEST.json"
FOLDER = "checkpoints"  # in the folder of the run
NAME = re.compile(r"step_(\d{12,})(?:_(\d+))?")
HASHED = 2 * 2**30  # bytes of a file up to which its contents are compared, and not its size alone

Writer = Callable[[io.BufferedIOBase], None]


def write_checkpoint(
    run: Path, step: int, files: Mapping[str, Writer], about: Mapping[str, Any], processes: Processes = ALONE
) -> Path:
    """Writes ``files`` (name -> what writes it) as the checkpoint of ``step`` timesteps; the manifest holds ``about``.

    Each of the ``processes`` writes files of its own, and rank 0 the manifest when all are on the disk. ``OSError`` in
    all of them where that fails in one; nothing is left of it then.
    """
    folder = run / FOLDER
    target = _free_name(folder, step)
    hidden = folder / part_name(target.name)
    paths: tuple[Path, Path] = processes.objects((target, hidden))[0]  # those of rank 0
    target, hidden = paths
    try:
        with in_all_or_none(processes):
            if processes.rank == 0:
                hidden.mkdir(parents=True)
        with in_all_or_none(processes):
            if not hidden.is_dir():
                raise OSError(f"{folder} is not the folder of rank 0; all machines have to see the same one")
            entries = {name: _written(hidden / name, write) for name, write in files.items()}
        of_all = processes.objects(entries)
        with in_all_or_none(processes):
            if processes.rank == 0:
                together_written = {name: entry for written in of_all for name, entry in written.items()}
                _complete(hidden, target, {"format": FORMAT, "step": step, "files": together_written, **about})
    except BaseException:
        if processes.rank == 0:
            remove(hidden)
        raise
    return target


def _complete(hidden: Path, target: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps({**manifest, "digest": _digest(manifest)}, indent=1)
    _written(hidden / MANIFEST, lambda file: file.write(text.encode()))
    sync_folder(hidden)
    os.rename(hidden, target)
    sync_folder(target.parent)


@contextmanager
def in_all_or_none(processes: Processes) -> Iterator[None]:
    """An ``OSError`` of one process is one of all."""
    with together(processes, OSError):
        try:
            yield
        except OSError as error:
            if processes.count == 1:
                raise
            raise OSError(str(error)) from error  # not a subclass, which the others cannot make
        except RuntimeError as error:  # torch's, of an OSError that its writer met
            cause = os_error_below(error)
            if cause is None:
                raise
            raise (cause if processes.count == 1 else OSError(str(cause))) from error


def os_error_below(error: BaseException | None) -> OSError | None:
    """The ``OSError`` that an error comes from, if any."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _free_name(folder: Path, step: int) -> Path:
    """A checkpoint of the same step, valid or not, is not replaced: the later one has the higher number."""
    name = f"step_{step:012d}"
    numbers = [_order(path)[1] for path in stored(folder.parent) if _order(path)[0] == step]
    return folder / (f"{name}_{max(numbers) + 1}" if numbers else name)


def _written(path: Path, write: Callable[[Any], object]) -> list[Any]:
    """Size and SHA-256 of a file that is on disk."""
    write_to_disk(path, write)
    return [path.stat().st_size, sha256(path)]


def sha256(path: Path) -> str:
    """The SHA-256 of a file's contents, read from the disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def stored(run: Path) -> list[Path]:
    """All checkpoints of a run, the newest first, valid or not. Their order is that of their names, not of a clock."""
    folder = run / FOLDER
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=_order, reverse=True)


def _order(path: Path) -> tuple[int, int]:
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; ``ValueError`` with the reason where it cannot be used."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        digest = manifest.pop("digest")
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({type(error).__name__}: {error})") from None
    if digest != _digest(manifest):
        raise ValueError(f"{MANIFEST} has been changed or damaged")
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"it has format {manifest['format']}, and this version reads format {FORMAT}; "
            "resume with the version of sb3_ppo_ext that wrote it"
        )
    return dict(manifest)


def fault(checkpoint: Path, *, contents: bool = True) -> str | None:
    """Why a checkpoint cannot be used; None where it can. Without ``contents`` only sizes are compared."""
    try:
        manifest = read_manifest(checkpoint)
    except ValueError as error:
        return str(error)
    for name, (size, digest) in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if contents and size <= HASHED and sha256(path) != digest:
            return f"{name} is damaged: its SHA-256 is not the one in {MANIFEST}"
    return None


def prune(run: Path, keep: int) -> None:
    """Removes all checkpoints older than the newest ``keep`` usable ones."""
    usable = 0
    for path in stored(run):
        if usable >= keep:
            _removed(path)
        elif fault(path, contents=False) is None:
            usable += 1


def _removed(checkpoint: Path) -> None:
    hidden = checkpoint.parent / part_name(checkpoint.name)  # so that a kill leaves no torn one under its name
    try:
        os.rename(checkpoint, hidden)
    except OSError:
        return
    remove(hidden)


def clean(run: Path) -> None:
    """Removes what killed processes have left half written or half removed."""
    remove_stale_parts(run / FOLDER)


def free_bytes(run: Path) -> int:
    """Bytes that may still be written to the run's disk."""
    return shutil.disk_usage(run).free


def size_of(checkpoint: Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in _files(checkpoint))


def _files(checkpoint: Path) -> Iterator[Path]:
    yield from (path for path in checkpoint.iterdir() if path.is_file())
