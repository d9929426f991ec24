"""Several processes give the numbers of one, which trains the same shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.jobs import JOBS, Result
from tests.distributed.worker import launch, results

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")


def differences(alone: Result, ranks: list[Result]) -> list[str]:
    """What differs between one process and several, or between two of these."""
    found = []
    first = ranks[0]
    for rank in ranks[1:]:
        for name, tensor in rank["parameters"].items():
            if not tensor.equal(first["parameters"][name]):
                found.append(f"{name} differs between ranks")
        found += [key for key in ("knobs", "counts", "steps", "episodes") if rank[key] != first[key]]
    for name, tensor in alone["parameters"].items():
        error = (tensor.double() - first["parameters"][name].double()).abs().max().item()
        if error > 1e-6:
            found.append(f"{name} by {error:.1e}")
    found += [key for key in ("counts", "steps") if alone[key] != first[key]]
    if not np.allclose(alone["episodes"], first["episodes"], atol=1e-5):  # in the same order
        found.append("episodes")
    for key, value in {**alone["knobs"], **alone["log"]}.items():
        theirs = {**first["log"], **first["knobs"]}.get(key)
        if theirs is None or not np.isclose(value, theirs, rtol=1e-4, atol=1e-6, equal_nan=True):
            found.append(f"{key}: {value} and {theirs}")
    return found


def compared(names: list[str], count: int, folder: Path) -> dict[str, Any]:
    children = launch(count, folder, *names)
    alone = {name: JOBS[name]() for name in names}  # meanwhile
    ranks = results(children, folder)
    return {
        name: wrong
        for name in names
        if (wrong := differences(alone[name], [rank[name] for rank in ranks]))
        or not observed_alike(alone[name], [rank[name] for rank in ranks])
    }


def observed_alike(alone: Result, ranks: list[Result]) -> bool:
    """Whether every process has seen, bit for bit, what the one sees of its environments."""
    if "observations" not in alone:
        return True
    together = [np.concatenate(rollout, axis=1) for rollout in zip(*(r["observations"] for r in ranks), strict=True)]
    return all(map(np.array_equal, alone["observations"], together))


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    assert compared([name for name in JOBS if "4 shards" not in name], 2, tmp_path) == {}


def test_three_processes_train_four_shards_as_one(tmp_path: Path) -> None:
    assert compared([name for name in JOBS if "4 shards" in name], 3, tmp_path) == {}
