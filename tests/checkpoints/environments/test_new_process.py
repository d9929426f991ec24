"""What is saved in one process goes on in another."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import pytest

from tests.checkpoints.environments.continuing import interrupted
from tests.checkpoints.environments.new_process import CASES, WITH_EXTRAS
from tests.forked import Program


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_environments_of_every_kind_go_on_in_a_new_process(tmp_path: Path) -> None:
    installed = {name: make for name, (module, make) in WITH_EXTRAS.items() if importlib.util.find_spec(module)}
    runs = {name: interrupted(make, before=50, after=150) for name, make in {**CASES, **installed}.items()}
    (tmp_path / "runs").write_bytes(pickle.dumps(runs))
    status, printed = Program("tests.checkpoints.environments.new_process", str(tmp_path / "runs")).end()
    assert status == 0, printed
    assert [line for line in printed.splitlines() if line in runs] == list(runs), printed
