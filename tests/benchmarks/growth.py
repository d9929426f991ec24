"""How the cost of SB3's PPO and of PPOX grows: with environments, with the batch, with the width of the network.

    python -m tests.benchmarks.growth [--quick] [--repeats 3] [--threads N] [--json FILE] [--picture FILE]
    python -m tests.benchmarks.growth --grid [...]

Prints three tables and draws them (--picture); with --grid, learn() in every cell of (policy, batch size, environments)
instead, the worst cell last. PPO, PPOX eager and PPOX compiled take turns; figures are medians; compiling is not
counted. Torch has the threads it takes by itself unless --threads says otherwise: where other programs run too, one is
the only number whose figures mean anything. --quick is a sketch in minutes: fewer points, one repeat.
Run it on a quiet machine; it is not part of the test suite.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.vec_env import GymnasiumVecEnv
from tests.benchmarks.measuring import (
    Seconds,
    Table,
    in_turn,
    machine_line,
    medians,
    number,
    one_rollout,
    write_json,
)
from tests.environments import Toy

Cell = dict[str, Seconds]  # of each side

COMPILE = {"PPOX eager": False, "PPOX compiled": True}


def cart_poles(n_envs: int) -> VecEnv:
    """Cheap in any number, so that what is seen is the algorithm's cost."""
    return GymnasiumVecEnv("CartPole-v1", n_envs, seed=0, vectorization_mode="vector_entry_point")


def toys(observation: str, n_envs: int) -> VecEnv:
    return make_vec_env(lambda: Toy(observation, "discrete"), n_envs, seed=0)


def measured(make_env: Callable[[], VecEnv], repeats: int, policy: str = "MlpPolicy", **arguments: Any) -> Cell:
    """``learn()`` over one rollout, and ``train()`` in it, of all sides."""
    models: dict[str, PPO] = {"SB3": PPO(policy, make_env(), seed=0, device="cpu", **arguments)}
    for name, compile in COMPILE.items():
        models[name] = PPOX(policy, make_env(), seed=0, device="cpu", compile=compile, **arguments)
    samples = in_turn(repeats, {name: one_rollout(model, warm_up=1) for name, model in models.items()})
    for model in models.values():
        model.get_env().close()  # type: ignore[union-attr]  # there is one
    return medians(samples)


@dataclass(frozen=True)
class Axis:
    """What grows, and what is read off: seconds of a unit of work."""

    label: str
    unit: str
    values: tuple[int, ...]
    measure: Callable[[int, int], Cell]  # the value, the repeats
    seconds: Callable[[int, Seconds], float]  # the value, of one side

    def points(self, quick: bool) -> tuple[int, ...]:
        """All values, or a third of them."""
        return self.values[:: 3 if quick else 1]


# Rollouts of one size, so that the update is the same and what grows is what acts at once.
def with_envs(n_envs: int, repeats: int) -> Cell:
    return measured(lambda: cart_poles(n_envs), repeats, n_steps=2048 // n_envs)


def with_batch(batch_size: int, repeats: int) -> Cell:
    return measured(lambda: cart_poles(64), repeats, n_steps=128, batch_size=batch_size, n_epochs=2)


def with_width(width: int, repeats: int) -> Cell:
    arguments: dict[str, Any] = {"n_steps": 32, "n_epochs": 2, "policy_kwargs": {"net_arch": [width, width]}}
    return measured(lambda: cart_poles(64), repeats, **arguments)


AXES = (
    Axis(
        "environments",
        "µs of learn() per timestep, batch 64",
        tuple(2**power for power in range(9)),
        with_envs,
        lambda n_envs, seconds: 1e6 * seconds.learn / 2048,
    ),
    Axis(
        "batch size",
        "ms of train() per minibatch, 64x64",
        tuple(2**power for power in range(6, 14)),
        with_batch,
        lambda batch_size, seconds: 1e3 * seconds.train / (2 * 8192 / batch_size),
    ),
    Axis(
        "width of two layers",
        "ms of train() per minibatch of 64",
        tuple(2**power for power in range(6, 11)),
        with_width,
        lambda width, seconds: 1e3 * seconds.train / (2 * 2048 / 64),
    ),
)

# policy -> environments, arguments
POLICIES: dict[str, tuple[str, Callable[[int], VecEnv], dict[str, Any]]] = {
    "MlpPolicy, CartPole-v1": ("MlpPolicy", lambda n: make_vec_env("CartPole-v1", n, seed=0), {}),
    "MlpPolicy, Pendulum-v1": ("MlpPolicy", lambda n: make_vec_env("Pendulum-v1", n, seed=0), {}),
    "gSDE, Pendulum-v1": ("MlpPolicy", lambda n: make_vec_env("Pendulum-v1", n, seed=0), {"use_sde": True}),
    "MultiInputPolicy, toy": ("MultiInputPolicy", lambda n: toys("dict", n), {}),
    "CnnPolicy, 36x36x3 toy": ("CnnPolicy", lambda n: toys("image", n), {}),
}
BATCHES = (64, 512, 2048)
COUNTS = (1, 8, 64)
EPOCHS = 4  # PPO's default is 10, but the more the rollout weighs, the less there is to gain


def print_growth(axis: Axis, options: argparse.Namespace) -> dict[str, Any]:
    """The table of one axis; its figures, side by side."""
    table = Table(axis.unit, "SB3", *(column for name in COMPILE for column in (name, "over SB3")))
    points = axis.points(options.quick)
    figures: dict[str, Any] = {"label": axis.label, "unit": axis.unit, "values": points}
    for value in points:
        cell = axis.measure(value, options.repeats)
        cost = {name: axis.seconds(value, seconds) for name, seconds in cell.items()}
        pairs = (text for name in COMPILE for text in (number(cost[name]), f"{cost['SB3'] / cost[name]:.2f}"))
        table.row(f"{axis.label} {value}", number(cost["SB3"]), *pairs)
        for name, one in cost.items():
            figures.setdefault("costs", {}).setdefault(name, []).append(one)
    return figures


def draw(figures: list[dict[str, Any]], path: Path) -> None:
    """Above the costs, below how many times SB3's speed that is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    styles = {"SB3": ("0.45", "o"), "PPOX eager": ("tab:blue", "s"), "PPOX compiled": ("tab:red", "D")}
    figure, grid = plt.subplots(
        2, len(figures), figsize=(12, 6.4), sharex="col", height_ratios=(3, 2), layout="constrained"
    )
    for axis, (cost, ratio) in zip(figures, grid.T, strict=True):
        for name, (color, marker) in styles.items():
            line: dict[str, Any] = {"color": color, "marker": marker, "markersize": 5, "label": name}
            cost.plot(axis["values"], axis["costs"][name], **line)
            ratios = [sb3 / one for sb3, one in zip(axis["costs"]["SB3"], axis["costs"][name], strict=True)]
            ratio.plot(axis["values"], ratios, **(line if name != "SB3" else {"color": color}))
        cost.set(yscale="log", title=axis["unit"])
        cost.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        cost.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        cost.yaxis.set_minor_formatter(NullFormatter())
        ratio.set(xlabel=axis["label"], ylim=(0, None))
        ratio.set_xscale("log", base=2)
        ratio.set_xticks(axis["values"], [str(value) for value in axis["values"]])
        for panel in (cost, ratio):
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(frameon=False)
    grid[1, 0].set_ylabel("times SB3's speed")
    figure.savefig(path, dpi=130)
    print(f"\nwritten: {path}")


def cells(quick: bool) -> Iterator[tuple[str, int, int]]:
    """(policy, batch size, environments); the corners alone when there is no time."""
    for policy in POLICIES:
        for batch_size in BATCHES[:: 2 if quick else 1]:
            for n_envs in COUNTS[:: 2 if quick else 1]:
                yield policy, batch_size, n_envs


def print_grid(options: argparse.Namespace) -> dict[str, Any]:
    """``learn()`` in every cell, and where PPOX gains least."""
    table = Table("ms of learn()", "SB3", *(column for name in COMPILE for column in (name, "over SB3")))
    figures: dict[str, Any] = {}
    ratios: dict[str, dict[str, float]] = {name: {} for name in COMPILE}
    for policy, batch_size, n_envs in cells(options.quick):
        kind, make_env, arguments = POLICIES[policy]
        sizes = {"batch_size": batch_size, "n_steps": 2048 // n_envs}
        epochs = 1 if options.quick else EPOCHS
        cell = measured(lambda: make_env(n_envs), options.repeats, kind, n_epochs=epochs, **sizes, **arguments)  # noqa: B023
        name = f"{policy}, batch {batch_size}, {n_envs} env{'s' if n_envs > 1 else ''}"
        figures[name] = {side: seconds._asdict() for side, seconds in cell.items()}
        for side in COMPILE:
            ratios[side][name] = cell["SB3"].learn / cell[side].learn
        pairs = (text for side in COMPILE for text in (number(1e3 * cell[side].learn), f"{ratios[side][name]:.2f}"))
        table.row(name, number(1e3 * cell["SB3"].learn), *pairs)
        write_json(options.json, {"grid": figures})  # what there is, should the run be ended early
    print()
    for side, found in ratios.items():
        worst = min(found, key=lambda name: found[name])
        print(f"worst cell of {side}: {found[worst]:.2f} times SB3's speed, {worst}")
    return figures


def main() -> None:
    """Prints, draws and writes what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    options.repeats = options.repeats or (1 if options.quick else 3)
    warnings.simplefilter("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    print(machine_line())
    if options.grid:
        print_grid(options)
        return
    figures = [print_growth(axis, options) for axis in AXES]
    write_json(options.json, {"growth": figures})
    if options.picture:
        draw(figures, options.picture)


if __name__ == "__main__":
    main()
