"""The entries of ``ppox.yml`` as an arm: what ``ppox train --env TASK`` trains with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from sb3_ppo_ext_zoo.recipes import expanded

from tests.benchmarks.learning.arm import BOTH, Arm
from tests.benchmarks.measuring import ROOT

FILE = ROOT / "integrations" / "sb3_ppo_ext_zoo" / "ppox.yml"
CLASSIC = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")
BOX2D = ("LunarLander-v3", "LunarLanderContinuous-v3", "BipedalWalker-v3")
OTHER = frozenset({"atari", "default"})  # of the file's keys, those that name no task

# What the texts of policy_kwargs may name; a layer stands for its own name, as in the other arms.
_LAYERS = SimpleNamespace(**{name: name for name in dir(torch.nn)})
_NAMES = {"__builtins__": {}, "dict": dict, "nn": _LAYERS}


def settings_of(entry: dict[str, Any], task: str) -> dict[str, Any]:
    """An entry's settings in the words of an ``Arm``."""
    arguments = expanded(entry, task)
    steps, policy = arguments.pop("n_timesteps"), arguments.pop("policy")
    assert policy == "MlpPolicy", f"policy={policy!r}: the runs train MlpPolicy"
    environment: dict[str, Any] = {"n_envs": arguments.pop("n_envs", 1)}
    if normalize := arguments.pop("normalize", False):  # true, or keywords, as text where rl_zoo3 evaluates them
        environment["normalize"] = BOTH if normalize is True else eval(normalize, _NAMES)
    if arguments.pop("staggered_start", False):
        environment["staggered"] = True
    if "policy_kwargs" in arguments:
        kwargs = arguments["policy_kwargs"]  # text, as rl_zoo3 has it, or a mapping
        arguments["policy_kwargs"] = eval(kwargs, _NAMES) if isinstance(kwargs, str) else kwargs
    return {"environment": environment, "arguments": arguments, "steps": int(float(steps))}


def entries(path: Path = FILE) -> dict[str, dict[str, Any]]:
    """Task -> settings, of every task of the file."""
    read = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {task: settings_of(entry, task) for task, entry in read.items() if task not in OTHER}


ENTRIES = {"ppox.yml": Arm(tasks=entries(), everywhere=False)}
