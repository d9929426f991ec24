"""The logger of a resumed run: the same files, continued, and the values that were recorded and not yet written.

TensorBoard's events are written to a new file in the same folder, with a purge step: TensorBoard leaves out what the
stopped run wrote after the checkpoint. Tables and texts are cut off where they were and appended to.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    JSONOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
)

from sb3_ppo_ext.checkpoints.journal import Entry, bring_back, record, relative
from sb3_ppo_ext.checkpoints.plain import is_plain
from sb3_ppo_ext.monitoring.tensorboard import unwritten

State = dict[str, Any]


class ContinuedTensorBoard(TensorBoardOutputFormat):
    """Writes into a folder that has events already; those from ``purge_step`` on are not shown."""

    def __init__(self, folder: str, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _wait_for_a_later_name(Path(folder))
        self.writer = SummaryWriter(log_dir=folder, purge_step=purge_step)
        self._is_closed = False


def _wait_for_a_later_name(folder: Path) -> None:
    """TensorBoard reads files in the order of their names, which begin with the second in which they were made."""
    numbers = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    newest = max((int(number) for number in numbers if number.isdigit()), default=0)
    wait = newest + 1 - time.time()
    if 0 < wait <= 1:  # more if the clock was set back
        time.sleep(wait)


class ContinuedCSV(CSVOutputFormat):
    """Appends to a table; ``keys`` are its columns."""

    def __init__(self, path: Path, keys: list[str]) -> None:
        self.file = path.open("r+")
        self.file.seek(0, 2)
        self.keys, self.separator, self.quotechar = list(keys), ",", '"'


class ContinuedJSON(JSONOutputFormat):
    """Appends to a file of lines."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a")


class ContinuedText(HumanOutputFormat):
    """Appends to a file of tables."""

    def __init__(self, path: Path, max_length: int) -> None:
        super().__init__(path.open("a"), max_length)
        self.own_file = True


def save_logger(logger: Logger, run: Path) -> State:
    """Returns the values that are recorded and not written, and the files of the outputs."""
    outputs = [saved for output in logger.output_formats if (saved := _save_output(output, run)) is not None]
    names = [name for name in unwritten(logger) if is_plain(logger.name_to_value[name])]
    return {
        "folder": None if logger.dir is None else relative(Path(logger.dir), run),
        "level": logger.level,
        "outputs": outputs,
        "values": {name: logger.name_to_value[name] for name in names},
        "counts": {name: logger.name_to_count[name] for name in names if name in logger.name_to_count},
        "excluded": {name: logger.name_to_excluded[name] for name in names if name in logger.name_to_excluded},
    }


def _save_output(output: Any, run: Path) -> State | None:
    if isinstance(output, TensorBoardOutputFormat):
        return {"kind": "tensorboard", "folder": relative(Path(output.writer.log_dir), run)}
    if isinstance(output, HumanOutputFormat) and not output.own_file:
        return {"kind": "stdout", "max_length": output.max_length} if output.file is sys.stdout else None
    kinds = {HumanOutputFormat: "log", CSVOutputFormat: "csv", JSONOutputFormat: "json"}
    kind = next((kind for base, kind in kinds.items() if isinstance(output, base)), None)
    if kind is None or output.file.closed:
        return None  # an output of the user's own, which the resumed program makes again
    output.file.flush()
    file = record(Path(output.file.name), run)
    more = {"keys": getattr(output, "keys", None), "max_length": getattr(output, "max_length", None)}
    return None if file is None else {"kind": kind, "file": file, **more}


def continued_logger(state: State, run: Path, num_timesteps: int) -> Logger:
    """Returns a logger that appends to the files of the saved one."""
    outputs = [output for saved in state["outputs"] if (output := _continued(saved, run, num_timesteps)) is not None]
    folder = None if state["folder"] is None else str(run / state["folder"])
    logger = Logger(folder, outputs)
    logger.set_level(state["level"])
    return logger


def _continued(saved: State, run: Path, num_timesteps: int) -> KVWriter | None:
    kind = saved["kind"]
    if kind == "stdout":
        return HumanOutputFormat(sys.stdout, saved["max_length"])
    if kind == "tensorboard":
        return ContinuedTensorBoard(str(run / saved["folder"]), purge_step=num_timesteps + 1)
    file: Entry = saved["file"]
    path = bring_back(file, run)
    if path is None:
        return None
    if kind == "csv":
        return ContinuedCSV(path, saved["keys"])
    return ContinuedJSON(path) if kind == "json" else ContinuedText(path, saved["max_length"])


def restore_pending(logger: Logger, state: State) -> None:
    """Replaces the recorded values by the saved ones."""
    for target, source in (
        (logger.name_to_value, state["values"]),
        (logger.name_to_count, state["counts"]),
        (logger.name_to_excluded, state["excluded"]),
    ):
        target.clear()
        target.update(source)
