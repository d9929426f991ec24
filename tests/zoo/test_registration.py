from __future__ import annotations

import subprocess
import sys

import pytest
from sb3_ppo_ext_zoo import register

from sb3_ppo_ext import PPOX


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_ppox_is_in_every_table_and_the_rest_is_untouched() -> None:
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    tables = (ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER)
    before = [{name: entry for name, entry in table.items() if name != "ppox"} for table in tables]
    register()
    once = [dict(table) for table in tables]
    register()
    assert [dict(table) for table in tables] == once
    assert [set(now) - set(then) for now, then in zip(once, before, strict=True)] == [{"ppox"}] * 3
    assert all(now[name] is entry for now, then in zip(once, before, strict=True) for name, entry in then.items())
    assert ALGOS["ppox"] is PPOX


def test_registering_leaves_the_rest_of_rl_zoo3_unimported() -> None:
    # From a custom_envs.py, importing rl_zoo3.exp_manager would be a circular import whose error rl_zoo3 swallows.
    done = run(
        "import sys, sb3_ppo_ext_zoo; sb3_ppo_ext_zoo.register();"
        "print(sorted(m for m in sys.modules if m.startswith('rl_zoo3.')))"
    )
    assert (
        done.stdout.strip() == "['rl_zoo3._version', 'rl_zoo3.gym_patches', 'rl_zoo3.hyperparams_opt', 'rl_zoo3.utils']"
    )


@pytest.mark.parametrize("absent", ["rl_zoo3", "requests"])
def test_a_missing_package_is_answered_with_the_line_that_installs_it(absent: str) -> None:
    done = run(f"import sys; sys.modules[{absent!r}] = None; import sb3_ppo_ext_zoo")
    assert f"ImportError: sb3_ppo_ext_zoo needs {absent}," in done.stderr
    assert 'pip install "sb3_ppo_ext[zoo]"' in done.stderr


def test_the_algorithm_itself_does_not_need_the_zoo() -> None:
    done = run("import sys, sb3_ppo_ext; print([m for m in sys.modules if m.startswith(('rl_zoo3', 'optuna'))])")
    assert done.stdout.strip() == "[]"
