"""A checkpoint is continued by as many processes as have written it, or by others."""

from __future__ import annotations

import pickle
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sb3_ppo_ext import PPOX, Checkpoints
from sb3_ppo_ext.checkpoints.reading import Checkpoint, CheckpointWarning
from sb3_ppo_ext.checkpoints.shares import Share, state_of
from sb3_ppo_ext.checkpoints.state import name_of_shard
from sb3_ppo_ext.distributed.shards import dealt
from tests.distributed.jobs import ENVS, case_model
from tests.distributed.resumed import StopAt, Stopped


@dataclass
class Rank:
    rank: int
    count: int


def written(folder: Path, processes: int, shards: int | None, partial: object = None) -> Checkpoint:
    """A checkpoint of eight environments whose states say which file they are from."""
    state = {"callbacks": [], "partial": partial}
    alone = own_state(0, 8)
    torch.save(state if processes > 1 else {**state, **alone}, folder / "state.pt")
    for rank in range(processes if processes > 1 else 0):
        each = 8 // (shards or 1)
        theirs = dealt(shards or 1, processes, rank)
        torch.save(own_state(theirs.start * each, len(theirs) * each), folder / name_of_shard(theirs.start))
    return Checkpoint(folder, {"processes": processes, "shards": shards, "n_envs": 8})


def own_state(first: int, count: int) -> dict[str, Any]:
    numbers = np.arange(first, first + count)
    files = [f"{index}.monitor.csv" for index in numbers]
    return {
        "streams": first,
        "environments": first,
        "monitor_files": files,
        "last": pickle.dumps({"_last_obs": numbers}),
    }


def share(rank: int, count: int, shards: int | None) -> Share:
    processes: Any = Rank(rank, count)
    return Share(processes, shards)


def test_as_many_processes_find_their_own_states(tmp_path: Path) -> None:
    found = written(tmp_path, 2, 4)
    for rank in range(2):
        state, lines = state_of(found, share(rank, 2, 4))
        assert state["environments"] == state["streams"] == 4 * rank and not lines


@pytest.mark.parametrize(
    ("before", "shards", "rank", "count", "pieces"),
    [
        # Environments are two to a shard. Two processes have saved 0 - 3 and 4 - 7; three have 0 - 3, 4 - 5 and 6 - 7.
        (2, 4, 0, 1, [(0, range(2), range(4)), (4, range(2), range(4))]),
        (2, 4, 1, 3, [(4, range(1), range(2))]),
        (2, 4, 2, 3, [(4, range(1, 2), range(2, 4))]),
        (3, 4, 1, 2, [(4, range(1), range(2)), (6, range(1), range(2))]),
        (1, 4, 3, 4, [(0, range(3, 4), range(6, 8))]),
        (3, 8, 1, 2, [(3, range(1, 3), range(1, 3)), (6, range(2), range(2))]),  # 0 - 2, 3 - 5 and 6 - 7
    ],
)
def test_other_processes_find_their_environments(
    before: int, shards: int, rank: int, count: int, pieces: list[Any], tmp_path: Path
) -> None:
    state, lines = state_of(written(tmp_path, before, shards), share(rank, count, shards))
    assert state["environments"] == pieces
    numbers = [first + row for first, _, rows in pieces for row in rows]
    assert pickle.loads(state["last"])["_last_obs"].tolist() == numbers
    assert state["monitor_files"] == [f"{index}.monitor.csv" for index in numbers]
    assert lines == [f"{before} processes have saved it, and {count} go on: results are equal up to rounding"]


def test_other_shards_have_other_streams_and_whole_ones_of_before_or_new_episodes(tmp_path: Path) -> None:
    found = written(tmp_path, 2, 4)
    state, lines = state_of(found, share(0, 1, 8))
    assert [first for first, *_ in state["environments"]] == [0, 4]
    assert lines[0].startswith("shards is 8 here and was 4: its random streams are others")
    state, lines = state_of(found, share(0, 8, 8))
    assert state["environments"] is None
    assert lines[1] == "2 processes have saved it, and 8 go on: all environments begin new episodes"


def test_a_rollout_that_one_process_has_begun_is_not_divided(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in the middle of a rollout, and 2 resume it"):
        state_of(written(tmp_path, 1, 2, partial={"buffer": {}}), share(1, 2, 2))


def test_another_number_of_shards_goes_on_with_the_environments(tmp_path: Path) -> None:
    with suppress(Stopped):
        case_model("box").learn(4 * ENVS * 16, StopAt(True), checkpoint=Checkpoints(tmp_path, every=0))
    env: Any = case_model("box").env
    with pytest.warns(CheckpointWarning, match="shards is 4 here and was 2"):
        model = PPOX.resume(tmp_path, env, StopAt(False), device="cpu", shards=4)
    assert model._last_obs is not None and model.num_timesteps == 2 * ENVS * 16
    assert model.learn().num_timesteps == 4 * ENVS * 16
