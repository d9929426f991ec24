"""kill -9 at random moments of one run, resumed each time: it ends as one that was never killed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sb3_ppo_ext.checkpoints.folder import FOLDER, stored
from sb3_ppo_ext.checkpoints.reading import required
from tests.checkpoints.runs import episodes, points
from tests.forked import Program


def run(folder: Path, kills: int) -> int:
    """How many sessions were killed before they ended."""
    status, printed = Program("tests.checkpoints.killed_run", str(folder), str(kills), "0").end()
    assert status == 0, printed
    return int(printed.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_run_killed_at_twenty_moments_ends_as_one_that_was_not(tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert run(unbroken, 0) == 0
    assert run(broken, 20) > 5  # the others ended first, on a fast machine
    assert np.array_equal(np.load(broken / "parameters.npy"), np.load(unbroken / "parameters.npy"))
    assert points(broken) == points(unbroken)
    assert episodes(broken)[1] == episodes(unbroken)[1]
    files = [np.load(folder / "evaluations.npz") for folder in (broken, unbroken)]
    assert files[0]["results"].tolist() == files[1]["results"].tolist()
    assert required(broken).manifest["finished"] and len(stored(broken)) == 3
    assert len(list((broken / FOLDER).iterdir())) == 3  # no parts are left
