"""What whole trainings reach: scores, and how well a controller holds its target, over several seeds.

    python -m tests.benchmarks.learning_checks [pendulum] [cartpole] [compiled] [torchrl] [walks] [--seeds N]

Prints each check's figures beside what is expected, and ends with an error where the median of the seeds is beyond it.
These are learning runs of minutes, and a seed takes another path on every processor: the test suite asserts what holds
on all of them, and this is run by hand after a change of the objective, of a controller or of an engine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ppo_ext import PPOX, AdaptiveKL, Threshold
from tests.benchmarks.measuring import Table, machine_line, number

EXAMPLES = Path(__file__).parents[2] / "examples"
TARGET = 0.01
NARROW = Threshold(1.2, 1.2)
INF = float("inf")


class Figure(NamedTuple):
    """What each seed reached, and the bounds of the median."""

    name: str
    values: list[float]
    low: float
    high: float = INF


class KLs(BaseCallback):
    """The exact KL of every update of the second half of a training."""

    def __init__(self, from_step: int) -> None:
        super().__init__()
        self.from_step = from_step
        self.values: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps > self.from_step:
            self.values.append(float(self.logger.name_to_value["train/kl_exact"]))


class Scores(BaseCallback):
    """The score of every episode."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def _on_step(self) -> bool:
        self.values += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True


def last_scores(model: PPOX) -> float:
    """The mean of the last hundred episodes."""
    return float(np.mean([info["r"] for info in model.ep_info_buffer or []]))


def pendulum(seeds: range) -> Iterator[Figure]:
    """Each use of AdaptiveKL holds its target on Pendulum, and Pendulum is learned (about -1200 untrained)."""
    uses: dict[str, dict[str, Any]] = {
        "penalty": {"surrogate": "none", "kl_coef": AdaptiveKL(1.0, TARGET)},
        "learning rate": {"learning_rate": AdaptiveKL(1e-3, TARGET, NARROW)},
        "clip range": {"clip_range": AdaptiveKL(0.2, TARGET, NARROW)},
    }
    for use, arguments in uses.items():
        medians, scores = [], []
        for seed in seeds:
            env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=16, seed=seed), gamma=0.9)
            settings = {"n_steps": 128, "batch_size": 256, "gamma": 0.9, "learning_rate": 1e-3, **arguments}
            kls = KLs(50_000)
            model = PPOX("MlpPolicy", env, seed=seed, device="cpu", **settings)
            scores.append(last_scores(model.learn(100_000, callback=kls, log_interval=None)))
            medians.append(statistics.median(kls.values) / TARGET)
        yield Figure(f"Pendulum, {use}: median KL / target", medians, 1 / 1.5, 1.5)
        yield Figure(f"Pendulum, {use}: score", scores, -500)


def cartpole(seeds: range) -> Iterator[Figure]:
    """Every objective learns CartPole (20 untrained, 500 at best)."""
    cases: dict[str, dict[str, Any]] = {
        "default": {},
        "spo": {"surrogate": "spo"},
        "clip and penalty": {
            **{"kl_coef": AdaptiveKL(1.0, 0.01), "clip_range": "cosine:0.3:0.1", "advantage_scope": "rollout"}
        },
        "normalised values, recomputed advantages": {
            **{"normalize_value": True, "recompute_advantage": True, "clip_range_high": 0.28, "dual_clip": 3.0}
        },
    }
    settings: dict[str, Any] = {
        "n_steps": 64,
        "batch_size": 256,
        "gamma": 0.98,
        "gae_lambda": 0.9,
        "learning_rate": 1e-3,
    }
    for name, arguments in cases.items():
        scores = []
        for seed in seeds:
            env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
            model = PPOX("MlpPolicy", env, seed=seed, device="cpu", **settings, **arguments)
            scores.append(last_scores(model.learn(50_000, log_interval=None)))
        yield Figure(f"CartPole, {name}: score", scores, 150)


def late_score(seed: int, compile: bool) -> float:
    """The mean score over the second half of a short CartPole run."""
    scores = Scores()
    env = make_vec_env("CartPole-v1", 8, seed=seed)
    settings: dict[str, Any] = {"n_steps": 128, "learning_rate": 1e-3, "n_epochs": 4, "seed": seed, "device": "cpu"}
    PPOX("MlpPolicy", env, compile=compile, **settings).learn(8192, scores)
    return float(np.mean(scores.values[len(scores.values) // 2 :]))


def compiled(_: range) -> Iterator[Figure]:
    """Scores of 20 seeds compiled and eager: two samples of one distribution, by the Kolmogorov-Smirnov test."""
    from scipy.stats import ks_2samp

    eager, compiled = ([late_score(seed, compile) for seed in range(20)] for compile in (False, True))
    yield Figure("CartPole, 8,192 steps, eager: score", eager, 40)
    yield Figure("CartPole, 8,192 steps, compiled: score", compiled, 40)
    yield Figure("same distribution: p", [float(ks_2samp(eager, compiled).pvalue)], 0.01)


def torchrl(seeds: range) -> Iterator[Figure]:
    """CartPole learned in TorchRL, and half in PPOX and half there."""
    from tests.torchrl import loops

    settings = {
        **loops.SETTINGS,
        "n_steps": 128,
        "batch_size": 256,
        "n_epochs": 10,
        "learning_rate": "linear:1e-3:1e-4",
    }
    for name, here in (("all", 0), ("half", 10 * 1024)):
        scores = []
        for seed in seeds:
            torch.manual_seed(seed)
            model = PPOX("MlpPolicy", make_vec_env("CartPole-v1", 8, seed=seed), **{**settings, "seed": seed})
            if here:
                model.learn(here)
            loops.train_in_torchrl(model, loops.cartpole, 30 * 1024, 1024)
            mean, _ = evaluate_policy(model, make_vec_env("CartPole-v1", 4, seed=1000), n_eval_episodes=20)
            scores.append(float(np.asarray(mean)))
        yield Figure(f"CartPole, {name} of it in TorchRL: score", scores, 475)


def walks(seeds: range) -> Iterator[Figure]:
    """RandomWalks-v0 with the settings of examples/text_tasks: 0.79 is the corpus's score, 1 the best there is."""
    from sb3_ppo_ext_zoo.cli import main
    from stable_baselines3.common.monitor import load_results

    sys.path.append(str(EXAMPLES))
    task = ["--env", "RandomWalks-v0", "--gym-packages", "text_tasks", "-conf", str(EXAMPLES / "text_tasks/ppox.yml")]
    scores = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["-n", "4096", "--eval-freq", "-1", "--verbose", "0", "-f", folder]
            main(["train", *task, *arguments, "--seed", str(seed)])
            scores.append(float(load_results(f"{folder}/ppox/RandomWalks-v0_1")["r"][-1024:].mean()))
    yield Figure("RandomWalks, 4,096 responses: score", scores, 0.95)


CHECKS: dict[str, Callable[[range], Iterator[Figure]]] = {
    **{"pendulum": pendulum, "cartpole": cartpole, "compiled": compiled, "torchrl": torchrl, "walks": walks}
}


def main() -> int:
    """Prints the table; 1 where a median is out of bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="check", help=f"of {', '.join(CHECKS)}; all if none is named")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if unknown := set(arguments.checks) - CHECKS.keys():
        parser.error(f"no check is called {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(machine_line())
    table = Table("", "median", "lowest", "highest", "expected", first_width=66)
    failures = 0
    for name in arguments.checks or CHECKS:
        for figure in CHECKS[name](range(arguments.seeds)):
            median = statistics.median(figure.values)
            holds = figure.low <= median <= figure.high
            failures += not holds
            bounds = (
                f"{number(figure.low)} .. {number(figure.high)}" if figure.high < INF else f"> {number(figure.low)}"
            )
            found = (median, min(figure.values), max(figure.values))
            table.row(figure.name, *map(number, found), bounds + " !" * (not holds))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
