"""PPOX beside Stable-Baselines3's PPO: time of learn() and of train(), peak memory, import time.

    python tests/benchmarks/against_sb3.py [--repeats 5] [--json figures.json]

PPO, PPOX and PPOX with compile=True run in turn in one process (memory and import: in processes of their own), one
thread each; figures are medians, "x" how many times PPO's. Compiling is not counted, but printed. Run it on a quiet
machine; it is not part of the test suite.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_ppo_ext import PPOX

Figures = dict[str, dict[str, float]]

# name -> environment, number of them, arguments
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "CartPole-v1": ("CartPole-v1", 8, {"n_steps": 256}),
    "Pendulum-v1": ("Pendulum-v1", 8, {"n_steps": 256}),
    "Pendulum-v1, gSDE": ("Pendulum-v1", 8, {"n_steps": 256, "use_sde": True}),
    "Pendulum-v1, batch 2048": ("Pendulum-v1", 8, {"n_steps": 256, "batch_size": 2048}),
    "CartPole-v1, width 512": ("CartPole-v1", 8, {"n_steps": 256, "policy_kwargs": {"net_arch": [512, 512]}}),
    "CartPole-v1, 1 environment": ("CartPole-v1", 1, {"n_steps": 2048}),
}

PEAK = """
import pathlib, warnings
warnings.simplefilter("ignore")
from {module} import {name}
model = {name}("MlpPolicy", "CartPole-v1", device="cpu", seed=0).learn(8192)
status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's where that is larger
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def in_turn(repeats: int, *sides: Callable[[], float]) -> list[float]:
    """The median of each side's seconds, the sides taking turns, there and back: the place in a turn matters too."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats):
        order = range(len(sides)) if turn % 2 == 0 else reversed(range(len(sides)))
        for index in order:
            seconds[index].append(sides[index]())
    return [statistics.median(column) for column in seconds]


def timed(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def speed(name: str, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of learn() over one rollout of 2048 steps, and of train() alone."""
    env, count, arguments = CASES[name]
    models: list[PPO] = [
        PPO("MlpPolicy", make_vec_env(env, count, seed=0), seed=0, device="cpu", **arguments).learn(2048),
        *(
            PPOX("MlpPolicy", make_vec_env(env, count, seed=0), seed=0, device="cpu", compile=compile, **arguments)
            for compile in (False, True)
        ),
    ]
    models[1].learn(2048)
    print(
        f"{name}: first rollout and update with compile=True {timed(lambda: models[2].learn(2048)):.1f} s", flush=True
    )
    learn = in_turn(repeats, *(lambda m=m: timed(lambda: m.learn(2048, reset_num_timesteps=False)) for m in models))
    # One rollout over and over: PPO's train() flattens the buffer the first time, PPOX's leaves it as it was.
    train = in_turn(repeats, *(lambda m=m: timed(m.train) for m in models))
    return compared(*learn), compared(*train)


def compared(ppo: float, *others: float) -> dict[str, float]:
    """The figures, and how many times PPO's they are."""
    figures = {"PPO": ppo}
    for name, figure in zip(("PPOX", "compiled"), others, strict=False):
        figures |= {name: figure, f"{name} x": ppo / figure}
    return figures


def in_process(code: str) -> float:
    """The number a fresh interpreter prints."""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1])


def peak_memory() -> dict[str, float]:
    """MiB of resident memory at the peak of a CartPole run."""
    return compared(
        in_process(PEAK.format(module="stable_baselines3", name="PPO")),
        in_process(PEAK.format(module="sb3_ppo_ext", name="PPOX")),
    )


def import_time(repeats: int) -> dict[str, float]:
    """Seconds to import the package in a fresh interpreter."""
    code = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    return compared(
        *in_turn(
            repeats,
            lambda: in_process(code.format("stable_baselines3")),
            lambda: in_process(code.format("sb3_ppo_ext")),
        )
    )


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    figures: Figures = {}
    for name in CASES:
        learn, train = speed(name, options.repeats)
        figures[f"learn(2048), {name} (s)"], figures[f"train(), {name} (s)"] = learn, train
    figures["peak memory, CartPole-v1 (MiB)"] = peak_memory()
    figures["import (s)"] = import_time(options.repeats)
    width = max(map(len, figures))
    columns = ("PPO", "PPOX", "PPOX x", "compiled", "compiled x")
    print(" " * width, *(f"{column:>10}" for column in columns))
    for name, row in figures.items():
        cells = (f"{row[column]:10.3f}" if column in row else f"{'':10}" for column in columns)
        print(f"{name:{width}}", *cells)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
