"""What importing imports, and what is said where an extra is missing: two fresh interpreters answer all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

IMPORTING = """
import json, sys
modules = {}
import sb3_ppo_ext, sb3_ppo_ext.vec_env
modules["core"] = sorted(sys.modules)
import sb3_ppo_ext.tensordicts
modules["tensordicts"] = sorted(sys.modules)
import sb3_ppo_ext_zoo
sb3_ppo_ext_zoo.register()
modules["zoo"] = sorted(sys.modules)
print(json.dumps(modules))
"""

ATTEMPTS = {
    "peft": ("import sb3_ppo_ext.language", "lm"),
    "tensordict": ("import sb3_ppo_ext.tensordicts", "torchrl"),
    "torchrl": ("import sb3_ppo_ext_torchrl", "torchrl"),
    "rl_zoo3": ("import sb3_ppo_ext_zoo", "zoo"),
    "requests": ("import sb3_ppo_ext_zoo", "zoo"),
    "transformers": ("import sb3_ppo_ext.language", "lm"),
    "ray": ("from sb3_ppo_ext.vec_env import RayVecEnv; RayVecEnv('CartPole-v1')", "ray"),
}
MISSING = """
import importlib.util, json, sys, traceback
find_spec = importlib.util.find_spec
errors = {}
for package, (attempt, _) in json.loads(sys.argv[1]).items():
    importlib.util.find_spec = lambda name, *rest: None if name == package else find_spec(name, *rest)
    try:
        exec(attempt)
    except Exception:
        errors[package] = traceback.format_exc()
print(json.dumps(errors))
"""


def answer(program: str, *arguments: str) -> Any:
    """What a new interpreter prints, read as JSON."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def modules() -> dict[str, list[str]]:
    """After importing what."""
    found: dict[str, list[str]] = answer(IMPORTING)
    return found


@pytest.fixture(scope="module")
def errors() -> dict[str, str]:
    """Without which package."""
    found: dict[str, str] = answer(MISSING, json.dumps(ATTEMPTS))
    return found


def test_the_core_imports_no_extra(modules: dict[str, list[str]]) -> None:
    extras = {"torchrl", "tensordict", "ray", "transformers", "peft", "rl_zoo3", "optuna", "envpool"}
    assert not extras & set(modules["core"])
    assert "sb3_ppo_ext.vec_env" in modules["core"]


def test_tensordicts_import_tensordict_and_not_torchrl(modules: dict[str, list[str]]) -> None:
    assert {"torchrl", "tensordict"} & set(modules["tensordicts"]) == {"tensordict"}


def test_registering_leaves_the_rest_of_rl_zoo3_unimported(modules: dict[str, list[str]]) -> None:
    # From a custom_envs.py, importing rl_zoo3.exp_manager would be a circular import whose error rl_zoo3 swallows.
    found = [name for name in modules["zoo"] if name.startswith("rl_zoo3.")]
    assert found == ["rl_zoo3._version", "rl_zoo3.gym_patches", "rl_zoo3.hyperparams_opt", "rl_zoo3.utils"]


@pytest.mark.parametrize("package", ATTEMPTS)
def test_a_missing_package_is_answered_with_the_line_that_installs_it(package: str, errors: dict[str, str]) -> None:
    assert "ImportError: " in errors[package] and f"needs {package}" in errors[package]
    assert f'pip install "sb3_ppo_ext[{ATTEMPTS[package][1]}]"' in errors[package]
