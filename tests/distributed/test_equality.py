"""Several processes give the numbers of one, which trains the same shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_ppo_ext.checkpoints.reading import CheckpointWarning
from tests.distributed import jobs, language_jobs, resumed
from tests.distributed.comparison import differences
from tests.distributed.jobs import Result
from tests.distributed.resumed import half_of_a_run, rest_of_a_run, whole_run
from tests.distributed.worker import launch, results

JOBS = {**jobs.JOBS, **resumed.JOBS}

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")


def compared(names: list[str], count: int, folder: Path) -> dict[str, Any]:
    children = launch(count, folder, *names)
    table = {**JOBS, **language_jobs.JOBS}
    alone = {name: table[name]() for name in names}  # meanwhile
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


def test_two_processes_train_as_one_and_one_goes_on_with_their_run(tmp_path: Path) -> None:
    assert compared([name for name in JOBS if "4 shards" not in name], 2, tmp_path) == {}
    with pytest.warns(CheckpointWarning, match="2 processes have saved it, and 1 go on: results are equal up to"):
        resumed = rest_of_a_run(tmp_path / "run")
    assert differences(whole_run(), [resumed]) == []


def test_three_processes_train_four_shards_as_one_and_go_on_with_its_run(tmp_path: Path) -> None:
    half_of_a_run(tmp_path / "run", 4)
    assert compared([name for name in JOBS if "4 shards" in name], 3, tmp_path) == {}


def test_two_processes_train_language_models_as_one(tmp_path: Path) -> None:
    assert compared(list(language_jobs.JOBS), 2, tmp_path) == {}
