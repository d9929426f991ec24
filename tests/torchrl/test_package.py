"""What importing costs and says."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_the_core_imports_neither_and_tensordicts_only_tensordict() -> None:
    code = "import sys, {}; print(*({{'torchrl', 'tensordict'}} & sys.modules.keys()))"
    for module, extras in (("sb3_ppo_ext", ""), ("sb3_ppo_ext.tensordicts", "tensordict")):
        done = subprocess.run([sys.executable, "-c", code.format(module)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == extras


@pytest.mark.parametrize("module", ["sb3_ppo_ext.tensordicts", "sb3_ppo_ext_torchrl"])
def test_a_missing_extra_fails_with_the_line_that_mends_it(module: str) -> None:
    hide = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'tensordict' else f(n)"
    )
    code = f"{hide}\nimport sys\nsys.path.append('integrations')\nimport {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and 'pip install "sb3_ppo_ext[torchrl]"' in done.stderr
