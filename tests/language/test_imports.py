from __future__ import annotations

import subprocess
import sys

HIDDEN = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "peft" else find_spec(name, *rest)
import sb3_ppo_ext.language
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_ppox_is_imported_without_transformers() -> None:
    assert (
        run("import sb3_ppo_ext, sys; sys.exit('transformers' in sys.modules or 'peft' in sys.modules)").returncode == 0
    )


def test_a_missing_extra_says_how_to_install_it() -> None:
    error = run(HIDDEN).stderr
    assert "needs peft, which cannot be found" in error and 'pip install "sb3_ppo_ext[lm]"' in error
