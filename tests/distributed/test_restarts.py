"""A process that is killed under torchrun: all are started again, and the run ends as if it had not been."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.comparison import differences
from tests.distributed.resumed import whole_run
from tests.forked import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")


def test_a_run_goes_on_after_kill_9_of_a_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    path = os.pathsep.join([str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")])
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "tests.distributed.restarted", str(run)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run / "killed").exists()
    ranks = [pickle.loads((run / f"result {rank}").read_bytes()) for rank in range(2)]
    assert differences(whole_run(), ranks) == []
