"""What a run of PPOX costs before it is fast: time to import, to compile, to start from the cache; peak memory.

    python -m tests.benchmarks.startup [--json figures.json]

Every figure is that of a fresh process; the caches of compiled graphs are folders that begin empty. Part of
``speed.py``; not part of the test suite.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tests.benchmarks.measuring import (
    CACHE_VARIABLES,
    Table,
    fresh_process,
    in_turn,
    machine_line,
    number,
    peak_memory,
    timed,
    write_json,
)

STARTS = 3  # from the cache; the median counts
IMPORTS = 5
IMPORT = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"

Run = dict[str, float]


def probed(side: str, environment: Mapping[str, str] | None = None) -> Run:
    """What ``probe`` finds in a process of its own."""
    found: Run = fresh_process(["-m", "tests.benchmarks.startup", "--probe", side], environment)
    return found


def probe(side: str) -> Run:
    """Of this process: seconds that the first ``learn()`` took longer than later ones, and the peak memory."""
    warnings.simplefilter("ignore")
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    env = make_vec_env("CartPole-v1", 8, seed=0)
    if side == "PPOX":
        from sb3_ppo_ext import PPOX

        model: PPO = PPOX("MlpPolicy", env, n_steps=256, seed=0, device="cpu", compile=True)
    else:
        model = PPO("MlpPolicy", env, n_steps=256, seed=0, device="cpu")
    first, *later = (timed(lambda: model.learn(2048, reset_num_timesteps=False)) for _ in range(6))
    return {"start": first - statistics.median(later), "memory": peak_memory()}


def import_time(module: str) -> float:
    """Seconds, in a fresh interpreter."""
    return float(fresh_process(["-c", IMPORT.format(module)]))


def measured() -> dict[str, float]:
    """All figures: seconds and MiB."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {variable: f"{folder}/{variable}" for variable in CACHE_VARIABLES}
        compiling = probed("PPOX", caches)
        cached = [probed("PPOX", caches) for _ in range(STARTS)]
    modules = ("stable_baselines3", "sb3_ppo_ext")
    imports = in_turn(IMPORTS, {module: partial(import_time, module) for module in modules})
    return {
        "first compile (s)": compiling["start"],
        "start from the cache (s)": statistics.median(run["start"] for run in cached),
        "SB3's memory (MiB)": probed("SB3")["memory"],
        "memory, compiling (MiB)": compiling["memory"],
        "memory, from the cache (MiB)": statistics.median(run["memory"] for run in cached),
        "SB3's import (s)": statistics.median(imports["stable_baselines3"]),
        "import (s)": statistics.median(imports["sb3_ppo_ext"]),
    }


def print_table(figures: dict[str, float]) -> None:
    """Beside SB3's figures and what is allowed."""

    def at_most(value: float, limit: float, unit: str) -> str:
        return f"{value:.2f}{unit} {'<=' if value <= limit else '> '} {limit:g}{unit}"

    table = Table("A new process, CartPole-v1, compile=True", "SB3", "PPOX", "PPOX against its limit")
    for name, limit in (("first compile (s)", 20.0), ("start from the cache (s)", 3.0)):
        table.row(f"{name}, above a later learn()", "-", number(figures[name]), at_most(figures[name], limit, " s"))
    for name in ("memory, compiling (MiB)", "memory, from the cache (MiB)"):
        sb3 = figures["SB3's memory (MiB)"]
        table.row(f"peak {name}", number(sb3), number(figures[name]), at_most(figures[name] / sb3, 1.5, "x"))
    sb3 = figures["SB3's import (s)"]
    table.row("import (s)", number(sb3), number(figures["import (s)"]), f"{figures['import (s)'] / sb3:.2f}x")


def main() -> None:
    """Prints the table and writes the figures, or those of this process alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--probe", choices=("SB3", "PPOX"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        print(json.dumps(probe(options.probe)))
        return
    import torch

    torch.set_num_threads(1)
    print(machine_line())
    figures = measured()
    print_table(figures)
    write_json(options.json, {"startup": figures})


if __name__ == "__main__":
    main()
