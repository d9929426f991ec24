"""Environment steps a second of one process and of two, and the share of their time in collectives.

    python -m tests.benchmarks.scaling [--seconds 6] [--repeats 3] [--tasks CartPole-v1] [--eager] [--json file]

Weak: each process has 8 environments, and the minibatch grows with the processes. Strong: 8 environments and one
minibatch for all. The sides take turns, in fresh processes over a file store; a figure is the median. ``learn()`` is
compiled, two rollouts before it is timed. Run it on a quiet machine with two cores; it is not part of the test suite.

The task "language-model" is a GPT-2 of 4 layers of width 128, eager: 8 responses of up to 16 tokens where others have
an environment, and steps are responses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import ROOT, in_turn, machine_line, write_json

ENVS = 8  # of a process, or of all
STEPS = 256
LANGUAGE_MODEL = "language-model"


def measured(
    task: str, batch_size: int, processes: int, scaling: str, seconds: float, compile: bool
) -> dict[str, float]:
    """Steps a second of all processes together, and the fraction of the time that rank 0 spends in collectives."""
    envs = ENVS if scaling == "weak" else ENVS // processes
    batch_size *= processes if scaling == "weak" else 1
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(processes), folder, task, str(envs), str(batch_size), str(seconds), str(compile)]
        children = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", __spec__.name, "--worker", str(rank), *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        outputs = [child.communicate()[0] for child in children]
    found: dict[str, float] = json.loads(outputs[0].splitlines()[-1])
    return found


def worker(
    rank: int, processes: int, folder: str, task: str, envs: int, batch_size: int, seconds: float, compile: bool
) -> None:
    """Trains as one of the processes; rank 0 prints the figures."""
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from torch import distributed as dist

    from sb3_ppo_ext import PPOX
    from sb3_ppo_ext.distributed import process_group

    torch.set_num_threads(1)
    if processes > 1:
        store = vars(dist)["FileStore"](str(Path(folder) / "store"), processes)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    in_collectives = timed_collectives(process_group.ProcessGroup)
    if task == LANGUAGE_MODEL:
        model = language_model(8 * envs, batch_size)
    else:
        settings: Any = {"n_steps": STEPS, "batch_size": batch_size, "seed": 0, "compile": compile}
        model = PPOX("MlpPolicy", make_vec_env(task, envs), **settings)
    rollout = model.n_steps * model.n_envs * processes
    model.learn(2 * rollout)
    began, first, in_collectives[0] = time.perf_counter(), model.num_timesteps, 0.0
    rollouts = 4  # of a learn(), at whose start the processes compare their arguments
    while True:
        model.learn(rollouts * rollout, reset_num_timesteps=False)
        took = time.perf_counter() - began
        enough = torch.tensor([float(took >= seconds)])
        if processes > 1:
            dist.broadcast(enough, 0)
        if enough.item():
            break
    steps = model.num_timesteps - first
    print(json.dumps({"steps_per_second": steps / took, "in_collectives": in_collectives[0] / took}))


def language_model(n_envs: int, batch_size: int) -> Any:
    """A GPT-2 of 4 layers over so many responses at a time."""
    from transformers import AutoModelForCausalLM, GPT2Config

    from sb3_ppo_ext import PPOX
    from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv

    ends: Any = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = GPT2Config(vocab_size=512, n_embd=128, n_layer=4, n_head=4, n_positions=64, **ends)
    prompts = [[2 + (row + place) % 500 for place in range(16)] for row in range(512)]
    env = PromptVecEnv(
        prompts, lambda prompts, responses: [float(len(set(response))) for response in responses],
        n_envs=n_envs, max_new_tokens=16, vocab_size=512, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    settings: Any = {"n_steps": 1, "batch_size": batch_size, "n_epochs": 4, "gamma": 1.0, "seed": 0, "compile": False}
    model = partial(AutoModelForCausalLM.from_config, config)
    return PPOX(LanguageModelPolicy, env, policy_kwargs={"model": model}, **settings)


def timed_collectives(group: Any) -> list[float]:
    """Adds the seconds in sums and maxima to the list that it returns."""
    seconds = [0.0]

    def timed(inherited: Any) -> Any:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return inherited(*arguments)
            finally:
                seconds[0] += time.perf_counter() - began

        return call

    for name in ("add", "maximum", "copy_first", "objects"):
        setattr(group, name, timed(getattr(group, name)))
    return seconds


def main() -> None:
    """Prints a line for each task, batch size and kind of scaling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=["CartPole-v1", "HalfCheetah-v5", "LunarLander-v3"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 1024])
    parser.add_argument("--eager", action="store_true", help="compile=False, for a first look without compiling")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        rank, count, folder, task, envs, batch_size, seconds, compile = options.worker
        worker(int(rank), int(count), folder, task, int(envs), int(batch_size), float(seconds), compile == "True")
        return
    print(machine_line())
    rows = {}
    for task in options.tasks:
        for batch_size in options.batch_sizes:
            sides = {
                name: partial(measured, task, batch_size, processes, scaling, options.seconds, not options.eager)
                for name, processes, scaling in (("one", 1, "weak"), ("weak", 2, "weak"), ("strong", 2, "strong"))
            }
            found = in_turn(options.repeats, sides)
            speed, share = (
                {name: statistics.median(side[figure] for side in turns) for name, turns in found.items()}
                for figure in ("steps_per_second", "in_collectives")
            )
            rows[f"{task}, batch {batch_size}"] = {"steps_per_second": speed, "in_collectives": share}
            print(
                f"{task:16} batch {batch_size:5}: one {speed['one']:8,.0f} steps/s; two, weak {speed['weak']:8,.0f} "
                f"({speed['weak'] / speed['one']:.2f}x, {share['weak']:.0%} in collectives); two, strong "
                f"{speed['strong']:8,.0f} ({speed['strong'] / speed['one']:.2f}x, {share['strong']:.0%})",
                flush=True,
            )
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
