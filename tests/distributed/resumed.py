"""Runs that are stopped, and go on from their checkpoints in as many processes or in others."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_ppo_ext import PPOX, Checkpoints
from sb3_ppo_ext.distributed import join_processes
from tests.distributed.jobs import ENVS, Result, case_model, result_of

RUN = "SB3_PPO_EXT_TESTED_RUN"


class Stopped(Exception):
    pass


class StopAt(BaseCallback):
    """Raises after so many timesteps, the first time; by default in the third rollout."""

    def __init__(self, stops: bool, timesteps: int = 2 * ENVS * 16 + 2 * ENVS) -> None:
        super().__init__()
        self.stops: Callable[[], bool] = lambda: stops  # no state
        self.moment: Callable[[], int] = lambda: timesteps

    def _on_step(self) -> bool:
        if self.stops() and self.num_timesteps == self.moment():
            raise Stopped
        return True


def stopped_and_resumed() -> Result:
    """A run that is stopped, and goes on from its checkpoint in other objects; compared with one that is not."""
    timesteps, make = 4 * ENVS * 16, partial(case_model, "gSDE", normalize={})
    whole = make().learn(timesteps)
    folder = join_processes().objects(tempfile.mkdtemp())[0]
    with suppress(Stopped):
        make().learn(timesteps, StopAt(True), checkpoint=Checkpoints(folder, every=0, keep=1))
    fresh: Any = make().env
    model = PPOX.resume(folder, fresh, StopAt(False), device="cpu").learn()
    theirs = whole.policy.state_dict()
    equal = all(tensor.equal(theirs[name]) for name, tensor in model.policy.state_dict().items())
    result = result_of(model)
    return {**result, "log": {**result["log"], "as if it had not stopped": float(equal)}}


def half_of_a_run(folder: str | Path | None = None, shards: int = 2) -> Result:
    """A run that is stopped between two updates."""
    model = case_model("gSDE", shards, normalize={})
    with suppress(Stopped):
        model.learn(4 * ENVS * 16, StopAt(True), checkpoint=Checkpoints(folder or run_folder(), every=0))
    return {**result_of(model), "log": {}, "episodes": []}  # of the rollout it was stopped in, each has its own


def rest_of_a_run(folder: str | Path, shards: int = 2) -> Result:
    """The same run, resumed in the midst of its episodes."""
    env: Any = case_model("gSDE", shards, normalize={}).env
    model = PPOX.resume(folder, env, StopAt(False), device="cpu")
    assert model._last_obs is not None
    return result_of(model.learn())


def whole_run(shards: int = 2) -> Result:
    """The same run, unbroken."""
    return result_of(case_model("gSDE", shards, normalize={}).learn(4 * ENVS * 16))


def run_folder() -> str:
    """The folder of the run that some processes begin and others finish."""
    return os.environ.get(RUN) or tempfile.mkdtemp()


def rest_in_several() -> Result:
    """Several processes go on with what one has begun; one does all of it."""
    return rest_of_a_run(run_folder(), 4) if join_processes().count > 1 else whole_run(4)


JOBS: dict[str, Callable[[], Result]] = {
    "stopped and resumed": stopped_and_resumed,
    "half of a run": half_of_a_run,
    "rest of a run, 4 shards": rest_in_several,
}
