"""One run: a training from its settings, and its record.

    python -m tests.benchmarks.learning.runs ORDER

ORDER is JSON: the task, the seed and the settings of an arm. The record is one line of JSON on the standard output.
SBX's interpreter runs this file too, so it imports no algorithm at the top.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from tests.benchmarks.learning.averaging import Average
from tests.benchmarks.measuring import processor

ALGORITHMS = {
    **{"PPOX": ("sb3_ppo_ext", "PPOX"), "PPO": ("stable_baselines3", "PPO"), "A2C": ("stable_baselines3", "A2C")},
    **{"TRPO": ("sb3_contrib", "TRPO"), "SBX": ("sbx", "PPO")},
}
PACKAGES = ("sb3_ppo_ext", "stable_baselines3", "sbx-rl", "gymnasium", "mujoco", "torch", "numpy")
POINTS = 50  # of a learning curve
EPISODES = 50  # of each of the two evaluations
EVALUATION_SEED = 1_000_000


class Curve(BaseCallback):
    """Collects (steps, mean return of the last 100 episodes) at evenly spaced steps, and statistics of the updates."""

    STATISTICS = ("approx_kl", "clip_fraction", "learning_rate", "kl_coef")

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.spacing = max(1, steps // POINTS)
        self.points: list[tuple[int, float | None]] = []
        self.updates: dict[str, list[float]] = {name: [] for name in self.STATISTICS}
        self.kls: list[float] = []  # of each update, the mean over its minibatches

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        for name, values in self.updates.items():
            value = self.logger.name_to_value.get(f"train/{name}")
            if value is not None:
                values.append(float(value))
        trained = getattr(self.model, "last_update", None)  # PPOX's
        if trained is not None:
            self.kls.append(float(np.mean([epoch.mean("kl") for epoch in trained.epochs])))
        if self.num_timesteps >= self.spacing * (len(self.points) + 1):
            self.points.append((self.num_timesteps, training_return(self.model)))

    def means(self) -> dict[str, float]:
        """The mean of each statistic over all updates; of the KL by ``kl_estimator`` over the later half."""
        found = {**self.updates, "kl_held": self.kls[len(self.kls) // 2 :]}
        means = {name: float(np.mean(values)) for name, values in found.items() if values}
        return {name: rounded(mean) for name, mean in means.items() if math.isfinite(mean)}


def rounded(value: float) -> float:
    """Six significant digits: a record is kept for years, and no score is known better."""
    return float(f"{value:.6g}")


def training_return(model: Any) -> float | None:
    """The mean return of the last 100 training episodes; None before the first has ended."""
    returns = [info["r"] for info in model.ep_info_buffer or ()]
    return rounded(float(np.mean(returns))) if returns else None


def environments(
    task: str,
    seed: int,
    *,
    n_envs: int = 1,
    normalize: Mapping[str, Any] | None = None,
    gamma: float = 0.99,
    staggered: bool = False,
) -> Any:
    """``n_envs`` copies of the task, in VecNormalize where ``normalize`` holds its keywords; ``gamma`` is the run's."""
    wrapper: Any = importlib.import_module("sb3_ppo_ext.vec_env").StaggeredStart if staggered else None
    env = make_vec_env(task, n_envs, seed=seed, wrapper_class=wrapper)
    return env if normalize is None else VecNormalize(env, gamma=gamma, **normalize)


def policy_arguments(written: Mapping[str, Any]) -> dict[str, Any]:
    """``policy_kwargs`` with the activation function named as in torch.nn replaced by its class."""
    name = written.get("activation_fn")
    return dict(written) if name is None else {**written, "activation_fn": getattr(torch.nn, name)}


def model_of(algorithm: str, env: Any, seed: int, arguments: Mapping[str, Any]) -> OnPolicyAlgorithm:
    """The algorithm with an arm's arguments."""
    module, name = ALGORITHMS[algorithm]
    keywords = {**arguments, "policy_kwargs": policy_arguments(arguments.get("policy_kwargs", {})), "seed": seed}
    if algorithm == "PPOX":
        keywords.setdefault("compile", True)
    algorithm_class: type[OnPolicyAlgorithm] = getattr(importlib.import_module(module), name)
    return algorithm_class("MlpPolicy", env, device="cpu", **keywords)


def evaluated(model: OnPolicyAlgorithm, task: str, settings: Mapping[str, Any], deterministic: bool) -> list[float]:
    """Returns of 50 episodes in fresh environments, observations under the frozen statistics of the training."""
    env = environments(task, EVALUATION_SEED, **{**settings["environment"], "n_envs": 10, "staggered": False})
    if isinstance(env, VecNormalize):
        env.training = env.norm_reward = False
        sync_envs_normalization(model.get_env(), env)  # type: ignore[arg-type]  # there is one
    returns, _ = evaluate_policy(model, env, EPISODES, deterministic=deterministic, return_episode_rewards=True)
    env.close()
    return [rounded(value) for value in returns]  # type: ignore[union-attr]  # a list where episodes are asked for


def defaults(model: OnPolicyAlgorithm, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The algorithm's arguments that an arm leaves alone, as this version has them."""
    parameters = inspect.signature(type(model)).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.name not in arguments and isinstance(parameter.default, (bool, int, float, str))
    }


def commit() -> str:
    """The commit that runs, "" outside a checkout; "+" says that files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return described.stdout.strip()


def versions() -> dict[str, str]:
    """What a score depends on besides the settings, and the processor that its seconds are of."""
    found = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "python": platform.python_version()}
    found |= {"commit": commit(), "processor": ", ".join(filter(None, processor()))}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def run(order: Mapping[str, Any]) -> dict[str, Any]:
    """Trains and evaluates; a training that diverges is a record too, with its error and no returns."""
    task, seed, settings = order["task"], order["seed"], order["settings"]
    torch.set_num_threads(1)
    if settings["algorithm"] == "random":
        return {**order, **of_random_actions(task, seed), "versions": versions()}
    start, arguments = time.process_time(), settings["arguments"]
    env = environments(task, seed, **settings["environment"], gamma=arguments.get("gamma", 0.99))
    model = model_of(settings["algorithm"], env, seed, arguments)
    curve, average = Curve(settings["steps"]), Average()
    outcome: dict[str, Any] = {}
    try:
        model.learn(settings["steps"], callback=[curve, average], log_interval=1_000_000)
    except (ValueError, FloatingPointError) as error:
        outcome = {"error": f"{type(error).__name__}: {error}"[:500]}
    outcome |= {"core_seconds": round(time.process_time() - start, 1), "last_100": training_return(model)}
    outcome |= {"curve": curve.points, "updates": curve.means()}
    if "error" not in outcome:
        outcome["deterministic"] = evaluated(model, task, settings, True)
        outcome["sampled"] = evaluated(model, task, settings, False)
        if average.put_into_policy():
            outcome["averaged"] = evaluated(model, task, settings, True)
    return {**order, **outcome, "defaults": defaults(model, arguments), "versions": versions()}


def of_random_actions(task: str, seed: int) -> dict[str, Any]:
    """The returns of 50 episodes of actions drawn from the space, as a record holds them."""
    start, env = time.process_time(), gymnasium.make(task)
    env.action_space.seed(seed)
    returns = []
    for episode in range(EPISODES):
        env.reset(seed=EVALUATION_SEED + episode)
        rewards, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            rewards, ended = rewards + float(reward), terminated or truncated
        returns.append(rounded(rewards))
    env.close()
    last_100 = rounded(float(np.mean(returns)))
    return {
        **{"core_seconds": round(time.process_time() - start, 1), "last_100": last_100},
        **{"deterministic": returns, "sampled": returns},
    }


def main() -> None:
    """Runs the order on the command line."""
    records, sys.stdout = sys.stdout, sys.stderr  # nothing else that is printed shall be taken for the record
    warnings.simplefilter("ignore")
    print(json.dumps(run(json.loads(sys.argv[1]))), file=records, flush=True)


if __name__ == "__main__":
    main()
