"""A checkpoint is continued by as many processes as have written it, or by others."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sb3_ppo_ext import PPOX, Checkpoints
from sb3_ppo_ext.checkpoints.reading import Checkpoint, CheckpointWarning
from sb3_ppo_ext.checkpoints.shares import Share, state_of
from sb3_ppo_ext.checkpoints.state import name_of_shard
from tests.distributed.jobs import ENVS, StopAt, Stopped, case_model


@dataclass
class Rank:
    rank: int
    count: int


def written(folder: Path, processes: int, shards: int | None, partial: object = None) -> Checkpoint:
    """A checkpoint whose states say which file they are from."""
    state = {"callbacks": [], "partial": partial}
    own = {"streams": 0, "environments": 0, "monitor_files": [0], "last": b""}
    torch.save(state if processes > 1 else {**state, **own}, folder / "state.pt")
    for rank in range(processes if processes > 1 else 0):
        first = rank * (shards or 0) // processes
        torch.save({**own, "streams": first, "environments": first}, folder / name_of_shard(first))
    return Checkpoint(folder, {"processes": processes, "shards": shards})


def share(rank: int, count: int, shards: int | None) -> Share:
    processes: Any = Rank(rank, count)
    return Share(processes, shards)


def test_as_many_processes_find_their_own_states(tmp_path: Path) -> None:
    found = written(tmp_path, 2, 4)
    for rank in range(2):
        state, lines = state_of(found, share(rank, 2, 4))
        assert state["environments"] == state["streams"] == 2 * rank and not lines


def test_other_processes_begin_new_episodes_and_other_shards_have_other_streams(tmp_path: Path) -> None:
    found = written(tmp_path, 2, 4)
    state, lines = state_of(found, share(2, 4, 4))
    assert state["environments"] is None and len(lines) == 1
    assert lines[0].startswith("2 processes have saved it, and 4 go on: all environments begin new episodes")
    _, lines = state_of(found, share(0, 1, 8))
    assert lines[0].startswith("shards is 8 here and was 4: its random streams are others")


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
