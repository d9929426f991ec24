"""PPOX beside Stable-Baselines3's PPO, and beside SBX's (JAX): one rollout and its update, and what a start costs.

    python -m tests.benchmarks.speed [--sbx-python PATH] [--repeats 9] [--only TEXT] [--json figures.json]

2048 steps of 8 environments (1 where a row says so), 10 epochs of minibatches of 64, MlpPolicy, on the CPU. All sides
learn in turn in one run, torch on one thread each (more only slow networks of this size down); JAX uses what it likes.
Figures are medians over the turns, ratios those of medians. Compiling and warming up are not counted here, but under "A
new process". SBX lives in an environment of its own (pip install sbx-rl), whose interpreter is the PATH. Run it on a
quiet machine; it is not part of the test suite.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.vec_env import EnvPoolVecEnv, GymnasiumVecEnv
from tests.benchmarks import startup
from tests.benchmarks.measuring import (
    ROOT,
    Seconds,
    Table,
    Turn,
    clock_on_steps,
    in_turn,
    machine_line,
    medians,
    number,
    one_rollout,
    write_json,
)

N_ENVS, N_STEPS, BATCH, EPOCHS = 8, 256, 64, 10
MINIBATCHES = EPOCHS * N_ENVS * N_STEPS // BATCH
CART_POLE = "CartPole-v1"

ENVS: dict[str, Callable[[str, int], VecEnv]] = {
    "DummyVecEnv": lambda task, n: make_vec_env(task, n, seed=0),
    "VecNormalize": lambda task, n: VecNormalize(make_vec_env(task, n, seed=0)),
    "EnvPool": lambda task, n: EnvPoolVecEnv(task, n, seed=0),
    "EnvPool, a core per thread": lambda task, n: EnvPoolVecEnv(task, n, seed=0, thread_affinity_offset=0),
    "vector entry point": lambda task, n: GymnasiumVecEnv(task, n, seed=0, vectorization_mode="vector_entry_point"),
}


@dataclass(frozen=True)
class Case:
    """A row. PPOX may step other environments than the baselines, which step ``baseline``."""

    task: str
    over_sb3: float | None = None
    over_sbx: float | None = None
    envs: str = "DummyVecEnv"
    baseline: str = "DummyVecEnv"
    n_envs: int = N_ENVS
    compile: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        more = ["1 environment"] * (self.n_envs == 1)
        more += [f"{key}={value}" for key, value in self.arguments.items()] + ["eager"] * (not self.compile)
        return ", ".join((self.task, *([self.envs] if self.envs != "DummyVecEnv" else []), *more))

    @property
    def all_arguments(self) -> dict[str, Any]:
        n_steps = N_STEPS * N_ENVS // self.n_envs
        defaults = {"n_steps": n_steps, "batch_size": BATCH, "n_epochs": EPOCHS, "seed": 0, "device": "cpu"}
        return {**defaults, **self.arguments}


CASES = (
    Case(CART_POLE, over_sb3=6, over_sbx=3),
    Case("HalfCheetah-v5", over_sb3=3, over_sbx=2.2),
    Case("HalfCheetah-v5", over_sb3=5.5, envs="VecNormalize", baseline="VecNormalize"),
    Case("HalfCheetah-v5", over_sb3=5, envs="VecNormalize", baseline="VecNormalize", n_envs=1),
    Case("LunarLander-v3", over_sb3=3.5, over_sbx=2.5),
    Case("HalfCheetah-v4", over_sb3=5, envs="EnvPool, a core per thread"),
    Case("HalfCheetah-v4", envs="EnvPool"),
    Case(CART_POLE, over_sb3=8, envs="vector entry point"),
    Case(CART_POLE, over_sb3=1.3, compile=False),
    Case("Pendulum-v1", arguments={"use_sde": True}),
)
MINIBATCH_OVER_SB3 = 8


class Sbx:
    """SBX's PPO in another interpreter, until ``close()``."""

    def __init__(self, python: Path, case: Case) -> None:
        order = {"task": case.task, "n_envs": N_ENVS, "threads": 1, "arguments": case.all_arguments}
        self.process = subprocess.Popen(
            [str(python), "-m", "tests.benchmarks.sbx_worker", json.dumps(order)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reply()

    def turn(self) -> Seconds:
        """One rollout and its update over there."""
        assert self.process.stdin is not None
        self.process.stdin.write("turn\n")
        self.process.stdin.flush()
        return Seconds(*self._reply())

    def _reply(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"SBX: {self.process.args!r} ended; its messages are above")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def share_in_env(model: PPO, turn: Turn, repeats: int) -> float:
    """The part of ``learn()``'s time that passes in the environment's steps; apart from what is timed."""
    shares = []
    for _ in range(repeats):
        with clock_on_steps(model.get_env() or model.env) as spent:  # type: ignore[arg-type]  # there is one
            seconds = turn().learn
        shares.append(sum(spent) / seconds)
    return statistics.median(shares)


def measured(case: Case, repeats: int, sbx_python: Path | None) -> dict[str, Any]:
    """The samples of a row, and PPOX's share of time in the environment."""
    model = PPOX("MlpPolicy", ENVS[case.envs](case.task, case.n_envs), compile=case.compile, **case.all_arguments)
    sides = {
        "SB3": one_rollout(PPO("MlpPolicy", ENVS[case.baseline](case.task, case.n_envs), **case.all_arguments)),
        "PPOX": one_rollout(model),
    }
    sbx = Sbx(sbx_python, case) if sbx_python is not None and case.over_sbx is not None else None
    if sbx is not None:
        sides["SBX"] = sbx.turn
    samples = in_turn(repeats, sides)
    if sbx is not None:
        sbx.close()
    share = share_in_env(model, sides["PPOX"], min(repeats, 3))
    model.env.close()  # type: ignore[union-attr]  # there is one
    return {"samples": samples, "medians": medians(samples), "in env": share}


def against(target: float | None, ratio: float | None) -> str:
    """A ratio beside the least it has to be."""
    if ratio is None:
        return f"-{'':7}"
    verdict = "" if target is None else f"{'>=' if ratio >= target else '< '} {target:g}"
    return f"{ratio:.2f} {verdict:6}"


def print_row(table: Table, name: str, seconds: dict[str, float], case: Case, *more: str) -> None:
    """Milliseconds of all sides and PPOX's ratios."""
    ppox, sbx = seconds["PPOX"], seconds.get("SBX")
    table.row(
        name,
        *(number(1e3 * seconds[side]) if side in seconds else "-" for side in ("SB3", "SBX", "PPOX")),
        against(case.over_sb3, seconds["SB3"] / ppox),
        against(case.over_sbx, sbx / ppox if sbx is not None else None),
        *more,
    )


def print_tables(figures: dict[str, dict[str, Any]], cases: Sequence[Case]) -> None:
    """``learn()`` in all cases, and one minibatch of those that share an environment with SB3."""
    columns = ("SB3 ms", "SBX ms", "PPOX ms", "over SB3", "over SBX", "in env", "bound")
    table = Table("learn(): a rollout of 2048 steps, its update", *columns, width=9)
    for case in cases:
        learn = {side: seconds.learn for side, seconds in figures[case.name]["medians"].items()}
        share = figures[case.name]["in env"]
        bound = learn["SB3"] / (share * learn["PPOX"])
        print_row(table, case.name, learn, case, f"{share:.0%}", f"{bound:.1f}")
    print("in env: the part of PPOX's time in the environment's steps; bound: over SB3, if nothing else took time")
    table = Table("train(): one minibatch of 64, two layers of 64", *columns[:5], width=9)
    for case in cases:
        if case.envs == "DummyVecEnv":
            train = {side: s.train / MINIBATCHES for side, s in figures[case.name]["medians"].items()}
            target = MINIBATCH_OVER_SB3 if case == CASES[0] else None
            print_row(table, case.name, train, Case(case.task, over_sb3=target))


def main() -> None:
    """Prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sbx-python", type=Path, metavar="PATH")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains it, without the starts")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(machine_line())
    print(f"2048 steps of 8 environments, batch 64, 10 epochs, MlpPolicy; medians of {options.repeats} turns")
    if options.sbx_python is None:
        print("SBX is left out: no --sbx-python was given")
    figures: dict[str, dict[str, Any]] = {}
    cases = [case for case in CASES if options.only in case.name]
    for case in cases:
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        figures[case.name] = measured(case, options.repeats, options.sbx_python)
    print_tables(figures, cases)
    write_json(options.json, {"learn": figures})
    if not options.only:
        print("starts of new processes ...", file=sys.stderr, flush=True)
        start = startup.measured()
        startup.print_table(start)
        write_json(options.json, {"learn": figures, "startup": start})


if __name__ == "__main__":
    main()
