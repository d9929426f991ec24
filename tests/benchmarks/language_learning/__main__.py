"""Works off a list of runs in this process, one after the other, and appends each record to a file.

    python -m tests.benchmarks.language_learning [--file language] [--tasks gcd ...] [--arms PPO ...] [--seeds 0 3]
                                                 [--responses N] [--list]

FILE is a name in docs/runs or a path. A run that the file holds is not repeated, so that the list goes on after a kill;
the run under way is lost. The records hold CPU seconds, and the list may run beside other work (`nice -n 19`).
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.language_learning.arms import ARMS, TASKS, settings
from tests.benchmarks.language_learning.runs import Success, run
from tests.benchmarks.learning import records


def orders(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All runs of the list: task by task, and seed by seed, so that an unfinished list has every arm with one seed."""
    for task in options.tasks:
        for seed in range(*options.seeds):
            for arm in options.arms:
                chosen = settings(task, arm)
                if options.responses is not None:
                    chosen["responses"] = options.responses
                yield {"task": task, "arm": arm, "seed": seed, "settings": chosen}


def score(record: dict[str, Any]) -> str:
    """What a record reached, in one short text."""
    if "error" in record:
        return str(record["error"])
    ends = [record["evaluations"][at] for at in (0, -1)]
    means = [float(np.mean(end[kind])) for kind in ("sampled", "greedy") for end in ends]
    return "sampled {:.2f} -> {:.2f}, greedy {:.2f} -> {:.2f}, ".format(*means) + f"{record['core_seconds']:.0f} core-s"


def work_off(path: Path, todo: list[dict[str, Any]]) -> None:
    """Runs the orders and keeps their records."""
    start, before = time.monotonic(), dict[str, Success]()
    for done, order in enumerate(todo, start=1):
        task = order["task"]
        record = run(order, before.get(task))
        first = record["evaluations"][0]
        before[task] = {kind: first[kind] for kind in ("greedy", "sampled")}  # the untrained model is every arm's
        records.append(path, record)
        gc.collect()  # a model lies in circles of references, and holds a gigabyte
        left = (time.monotonic() - start) / done * (len(todo) - done) / 60
        name = f"{task} {order['arm']} seed {order['seed']}"
        print(f"{name}: {score(record)}; {len(todo) - done} runs left, about {left:.0f} min", flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="language")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs=2, type=int, default=(0, 3), metavar=("FIRST", "END"))
    parser.add_argument("--responses", type=int, help="of every run, instead of the task's")
    parser.add_argument("--list", action="store_true", help="print the runs that are left and end")
    return parser.parse_args()


def main() -> None:
    """Works off what the file does not hold yet."""
    options = parsed()
    path, todo = records.missing(options.file, orders(options))
    if options.list:
        print(*(f"{order['task']} {order['arm']} seed {order['seed']}" for order in todo), sep="\n")
    else:
        work_off(path, todo)


if __name__ == "__main__":
    main()
