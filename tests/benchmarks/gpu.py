"""PPOX by CUDA graphs beside PPOX eager, Stable-Baselines3's PPO and LeanRL's recipe, all on one GPU.

    python -m tests.benchmarks.gpu [--repeats 5] [--case 0 ...] [--device cuda] [--json figures.json]

Whole calls of ``learn()`` over one rollout, and their updates, in turn; medians, ratios of medians. Each side of each
case is a process of its own. All get ready at once, so the first ``learn()``, which compiles what TorchInductor's cache
on disk does not hold yet (``TORCHINDUCTOR_CACHE_DIR``), takes longer than it would alone; then they take turns, one
at a time. Environments step on the host as everywhere; those with images hand out some drawn beforehand. On a machine
without a GPU it says so and ends; it is not part of the test suite.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.vec_env import GymnasiumVecEnv
from tests.benchmarks.images import SPACES, Album
from tests.benchmarks.lean import LeanPPO
from tests.benchmarks.measuring import (
    Seconds,
    Table,
    Turn,
    in_turn,
    machine_line,
    medians,
    number,
    one_rollout,
    write_json,
)
from tests.benchmarks.processes import Side

CART_POLE = "CartPole-v1"
SIDES = ("SB3", "eager", "LeanRL", "graphs")
WARM_UP = 3  # turns after the first: CudaGraphModule records in its third call


@dataclass(frozen=True)
class Case:
    """A row: environments, and what it trains with."""

    name: str
    n_envs: int
    image: str = ""  # which of the spaces of ``images``
    arguments: dict[str, Any] = field(default_factory=dict)

    def env(self) -> Any:
        """CartPoles in one batch, or images, channels first as PPO would have them."""
        if self.image:
            return VecTransposeImage(Album(SPACES[self.image], self.n_envs))
        return GymnasiumVecEnv(CART_POLE, self.n_envs, seed=0, vectorization_mode="vector_entry_point")

    @property
    def policy(self) -> str:
        """By its alias."""
        return "CnnPolicy" if self.image else "MlpPolicy"


CASES = (
    Case("CartPole, 8 environments, batch 64", 8, "", {"n_steps": 256, "batch_size": 64, "n_epochs": 10}),
    Case("CartPole, 64 environments, batch 2048", 64, "", {"n_steps": 256, "batch_size": 2048, "n_epochs": 10}),
    *(
        Case(
            f"{image}, {n_envs} environments, batch 256",
            n_envs,
            image,
            {"n_steps": 128, "batch_size": 256, "n_epochs": 4},
        )
        for image, n_envs in (("36x36x3", 16), ("84x84x4", 8))
    ),
)


def one_side(case: Case, side: str, device: str) -> tuple[Turn, Seconds]:
    """What a side's process makes; it tells of its first ``learn()``."""
    given = {"seed": 0, "device": device, **case.arguments}
    env = case.env()
    if side == "LeanRL":
        turn: Turn = LeanPPO(env, image=bool(case.image), device=device, **case.arguments).turn
    elif side == "SB3":
        turn = one_rollout(PPO(case.policy, env, **given), warm_up=0)
    else:
        turn = one_rollout(PPOX(case.policy, env, compile=side == "graphs", **given), warm_up=0)
    first = turn()
    for _ in range(WARM_UP):
        turn()
    return turn, first


def measured(cases: Sequence[Case], device: str, repeats: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Seconds of every side, case by case."""
    sides = {case.name: {name: Side(one_side, case, name, device) for name in SIDES} for case in cases}
    first = {case: {name: side.ready() for name, side in these.items()} for case, these in sides.items()}
    for case, these in sides.items():
        samples = in_turn(repeats, {name: side.turn for name, side in these.items()})
        for side in these.values():
            side.close()
        yield case, {"first": first[case], "samples": samples, "medians": medians(samples)}


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
    print(machine_line())
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
    figures = dict(measured([CASES[index] for index in options.case], options.device, options.repeats))
    print_first(figures)
    print_table("learn()", figures, "learn")
    print_table("train()", figures, "train")
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
