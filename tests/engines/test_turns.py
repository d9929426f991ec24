"""Processes that compile the same graph take turns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sb3_ppo_ext.engines.cpu.turns import turn

WAITING = """
import sys
from pathlib import Path
from sb3_ppo_ext.engines.cpu.turns import turn
print("waits", flush=True)
with turn(Path(sys.argv[1])):
    print("turn", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_a_process_waits_for_the_turn_of_another_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "graph.lock"
    with turn(path):
        child = subprocess.Popen([sys.executable, "-c", WAITING, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None and child.stdout.readline() == "waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
    assert child.communicate(timeout=60)[0] == "turn\n"
    assert not path.exists()
