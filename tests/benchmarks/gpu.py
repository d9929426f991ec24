"""PPOX by CUDA graphs beside PPOX eager, Stable-Baselines3's PPO and LeanRL's recipe, all on one GPU.

    python -m tests.benchmarks.gpu [--repeats 5] [--case 0 ...] [--device cuda] [--json figures.json]

Whole calls of ``learn()`` over one rollout, and their updates, in turn; medians, ratios of medians. Before them the
first ``learn()`` of each side, which compiles what TorchInductor's cache on disk does not hold yet
(``TORCHINDUCTOR_CACHE_DIR``). Environments step on the host as everywhere. On a machine without a GPU it says so and
ends; it is not part of the test suite.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.vec_env import GymnasiumVecEnv
from tests.benchmarks.lean import LeanPPO
from tests.benchmarks.measuring import Table, in_turn, machine_line, medians, number, one_rollout, write_json
from tests.environments import Toy

CART_POLE = "CartPole-v1"
SIDES = ("SB3", "eager", "LeanRL", "graphs")
WARM_UP = 3  # turns after the first: CudaGraphModule records in its third call


@dataclass(frozen=True)
class Case:
    """A row: environments, and what it trains with."""

    name: str
    n_envs: int
    image: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    def env(self) -> Any:
        """CartPoles in one batch, or random images, channels first as PPO would have them."""
        if self.image:
            return VecTransposeImage(DummyVecEnv([lambda: Toy("image", "discrete", 50)] * self.n_envs))
        return GymnasiumVecEnv(CART_POLE, self.n_envs, seed=0, vectorization_mode="vector_entry_point")

    @property
    def policy(self) -> str:
        """By its alias."""
        return "CnnPolicy" if self.image else "MlpPolicy"


CASES = (
    Case("CartPole, 8 environments, batch 64", 8, arguments={"n_steps": 256, "batch_size": 64, "n_epochs": 10}),
    Case("CartPole, 64 environments, batch 2048", 64, arguments={"n_steps": 256, "batch_size": 2048, "n_epochs": 10}),
    Case("images 36x36, 16 environments, batch 256", 16, True, {"n_steps": 64, "batch_size": 256, "n_epochs": 4}),
)


def measured(case: Case, device: str, repeats: int) -> dict[str, Any]:
    """Seconds of every side."""
    given = {"seed": 0, "device": device, **case.arguments}
    sides = {
        "SB3": PPO(case.policy, case.env(), **given),
        "eager": PPOX(case.policy, case.env(), compile=False, **given),
        "graphs": PPOX(case.policy, case.env(), compile=True, **given),
    }
    lean = LeanPPO(case.env(), image=case.image, device=device, **case.arguments)
    turns = {"LeanRL": lean.turn, **{name: one_rollout(model, warm_up=0) for name, model in sides.items()}}
    first = {name: turn() for name, turn in turns.items()}
    for turn in turns.values():
        for _ in range(WARM_UP):
            turn()
    samples = in_turn(repeats, turns)
    return {"first": first, "samples": samples, "medians": medians(samples)}


def print_first(figures: dict[str, dict[str, Any]]) -> None:
    """Seconds of the first ``learn()`` of all sides."""
    table = Table("the first learn()", *(f"{side} s" for side in SIDES), width=10)
    for name, figure in figures.items():
        table.row(name, *(number(figure["first"][side].learn) for side in SIDES))


def print_table(title: str, figures: dict[str, dict[str, Any]], part: str) -> None:
    """Milliseconds of all sides, and how many times faster the graphs are."""
    others = SIDES[:-1]
    table = Table(title, *(f"{side} ms" for side in SIDES), *(f"over {side}" for side in others), width=10)
    for name, figure in figures.items():
        seconds = {side: getattr(one, part) for side, one in figure["medians"].items()}
        times = [number(1e3 * seconds[side]) for side in SIDES]
        table.row(name, *times, *(f"{seconds[side] / seconds['graphs']:.2f}" for side in others))


def main() -> None:
    """Prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", type=int, nargs="+", default=list(range(len(CASES))), help="row numbers, from 0")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(1, "there is no GPU here (torch.cuda.is_available() is False)\n")
    warnings.simplefilter("ignore")
    print(machine_line())
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
    cases = [CASES[index] for index in options.case]
    figures = {case.name: measured(case, options.device, options.repeats) for case in cases}
    print_first(figures)
    print_table("learn()", figures, "learn")
    print_table("train()", figures, "train")
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
