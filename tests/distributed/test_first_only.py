"""Callbacks that write or evaluate are those of rank 0; in the others nothing is left of them."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EveryNTimesteps

from sb3_ppo_ext.distributed.first_only import without_writers
from tests.distributed.jobs import case_model


class Counts(BaseCallback):
    def _on_step(self) -> bool:
        return True


class Reports(Counts):
    rank_zero_only = True


def test_what_takes_the_place_of_writing_callbacks_goes_through_a_run(tmp_path: Path) -> None:
    counts, reports = Counts(), Reports()
    every = EveryNTimesteps(8, CheckpointCallback(1, str(tmp_path / "inside")))
    listed = [counts, reports, every, CheckpointCallback(1, str(tmp_path))]
    model = case_model("box")
    for callback in (listed, CallbackList(listed), reports):
        model.learn(64, without_writers(callback))
    assert counts.n_calls == 32 and reports.n_calls == 0 and not list(tmp_path.rglob("*"))
    assert without_writers(None) is None
