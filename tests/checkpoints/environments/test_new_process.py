"""What is saved in one process goes on in another."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints.environments.continuing import interrupted
from tests.checkpoints.environments.new_process import CASES, WITH_EXTRAS

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_environments_of_every_kind_go_on_in_a_new_process(tmp_path: Path) -> None:
    installed = {name: make for name, (module, make) in WITH_EXTRAS.items() if importlib.util.find_spec(module)}
    runs = {name: interrupted(make, before=50, after=150) for name, make in {**CASES, **installed}.items()}
    (tmp_path / "runs").write_bytes(pickle.dumps(runs))
    found = subprocess.run(
        [sys.executable, "-m", "tests.checkpoints.environments.new_process", str(tmp_path / "runs")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'integrations'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert [line for line in found.stdout.splitlines() if line in runs] == list(runs), found.stdout
