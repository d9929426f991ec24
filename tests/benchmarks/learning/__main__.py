"""Works off a list of runs, one process per core, and appends each record to a file. Started again, it goes on.

    python -m tests.benchmarks.learning FILE [--arms sb3 steered] [--tasks HalfCheetah-v5 ...] [--seeds 0 10]
                                             [--steps N] [--processes 2] [--sbx-python PATH] [--list]

FILE is a name in docs/runs or a path. Where it is a stage of ``plan.PLAN``, the options choose among that stage's runs;
without them all are worked off. A run that the file holds is not repeated. The records hold CPU seconds of the
process, not wall time, so the list may run beside other work (`nice -n 19`). Ctrl-C and SIGTERM end the runs under way,
which are lost; the file stays whole.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.learning import records
from tests.benchmarks.learning.arms import ARMS, SUITE
from tests.benchmarks.learning.plan import PLAN, Stage
from tests.benchmarks.measuring import ROOT

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def orders(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All runs of the list: the file's stage of the plan, or what of it the options name."""
    stage = PLAN.get(options.file, Stage((), SUITE, range(1)))
    if not (stage.arms or options.arms):
        raise SystemExit(f"{options.file}: no stage of the plan ({', '.join(PLAN)}); name the arms by --arms")
    if options.arms:
        stage = replace(stage, arms=tuple(options.arms))
    if options.tasks:
        stage = replace(stage, tasks=tuple(options.tasks), tasks_of={})
    if options.seeds:
        stage = replace(stage, seeds=range(*options.seeds), seeds_of={})
    yield from stage.orders(options.steps)


def started(order: Mapping[str, Any], sbx_python: Path | None) -> subprocess.Popen[str]:
    """A process that runs the order."""
    python = str(sbx_python) if order["settings"]["algorithm"] == "SBX" else sys.executable
    command = [python, "-m", "tests.benchmarks.learning.runs", json.dumps(order)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def score(record: Mapping[str, Any]) -> str:
    """What a record reached, in one short text."""
    if "error" in record:
        return str(record["error"])
    mean = sum(record["deterministic"]) / len(record["deterministic"])
    return f"last 100 {record['last_100']:.0f}, deterministic {mean:.0f}, {record['core_seconds']:.0f} core-s"


class Work:
    """The runs under way, the ones to come, and the time that is left."""

    def __init__(self, path: Path, todo: list[dict[str, Any]], sbx_python: Path | None) -> None:
        self.path = path
        self.todo = todo
        self.sbx_python = sbx_python
        self.under_way: list[tuple[dict[str, Any], subprocess.Popen[str]]] = []
        self.start = time.monotonic()
        self.finished = self.failed = 0

    def work_off(self, processes: int) -> None:
        """Keeps ``processes`` runs under way until none is left."""
        try:
            while self.todo or self.under_way:
                while self.todo and len(self.under_way) < processes:
                    order = self.todo.pop(0)
                    self.under_way.append((order, started(order, self.sbx_python)))
                self._collect()
                time.sleep(0.2)
        finally:
            for _, process in self.under_way:
                process.kill()

    def _collect(self) -> None:
        for order, process in [pair for pair in self.under_way if pair[1].poll() is not None]:
            self.under_way.remove((order, process))
            line = process.stdout.read() if process.stdout is not None else ""
            name = f"{order['task']} {order['arm']} seed {order['seed']}"
            if process.returncode or not line:
                self.failed += 1
                print(f"{name}: the process ended with status {process.returncode} and no record", flush=True)
                continue
            record = json.loads(line)
            records.append(self.path, record)
            self.finished += 1
            print(f"{name}: {score(record)}; {self._left()}", flush=True)

    def _left(self) -> str:
        runs = len(self.todo) + len(self.under_way)
        minutes = (time.monotonic() - self.start) / self.finished * runs / 60
        return f"{runs} runs left, about {minutes:.0f} min"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), metavar="ARM", help="; ".join(sorted(ARMS)))
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--seeds", nargs=2, type=int, metavar=("FIRST", "END"))
    parser.add_argument("--steps", type=int, help="of every run, instead of the arm's")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sbx-python", type=Path)
    parser.add_argument("--list", action="store_true", help="print the runs that are left and end")
    return parser.parse_args()


def main() -> None:
    """Works off what the file does not hold yet; ends with status 1 where a process left no record."""
    options = parsed()
    path, todo = records.missing(options.file, orders(options))
    if options.sbx_python is None and (of_sbx := [order for order in todo if order["settings"]["algorithm"] == "SBX"]):
        todo = [order for order in todo if order not in of_sbx]
        print(f"{len(of_sbx)} runs of SBX are left out: name the interpreter of its environment by --sbx-python PATH")
    if options.list:
        print(*(f"{order['task']} {order['arm']} seed {order['seed']}" for order in todo), sep="\n")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that it ends the runs, too
    work = Work(path, todo, options.sbx_python)
    work.work_off(options.processes)
    sys.exit(work.failed > 0)


if __name__ == "__main__":
    main()
