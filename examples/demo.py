"""What `make demo` runs: trains PPOX on CartPole-v1 with `ppox train`, evaluates it, says where all of it lies.

Exits with 1 when the mean return is below --at-least.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_ppo_ext import PPOX

ENV = "CartPole-v1"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, help="instead of the number in ppox.yml")
parser.add_argument("--at-least", type=float, default=475.0, help="the mean return that counts as solved")
parser.add_argument("--folder", type=Path, default=Path("runs/demo") / time.strftime("%Y%m%d-%H%M%S"))
options = parser.parse_args()
console = Console()
torch.set_num_threads(1)  # faster for a network this small
tensorboard = options.folder / "tensorboard"

# 1. Train from the CartPole-v1 entry of ppox.yml: what `ppox train` does.
train = ["-m", "sb3_ppo_ext_zoo", "train", "--env", ENV, "--seed", "1"]
train += ["--progress", "--verbose", "0", "--eval-freq", "-1", "--device", "cpu", "--num-threads", "1"]
train += ["--log-folder", str(options.folder), "--tensorboard-log", str(tensorboard)]
if options.timesteps:
    train += ["--n-timesteps", str(options.timesteps)]
console.print(f"Training PPOX on {ENV}:  ppox {shlex.join(train[2:])}", soft_wrap=True, highlight=False)
subprocess.run([sys.executable, *train], check=True)

# 2. Evaluate what was saved, eight episodes at a time.
run = options.folder / "ppox" / f"{ENV}_1"
model = PPOX.load(run / f"{ENV}.zip", device="cpu")
returns, _ = evaluate_policy(
    model, make_vec_env(ENV, n_envs=8, seed=100), n_eval_episodes=100, deterministic=True, return_episode_rewards=True
)

# 3. Read the figures of the training back from its TensorBoard log.
(log,) = tensorboard.rglob("events.out.tfevents.*")
events = EventAccumulator(str(log)).Reload()


def logged(key: str) -> list[float]:
    return [event.value for event in events.Scalars(key)]


kl, clip_range = logged("train/approx_kl"), logged("train/clip_range")
table = Table(title=f"PPOX on {ENV}", show_header=False)
table.add_row("mean return of 100 episodes", f"{np.mean(returns):.1f} +- {np.std(returns):.1f}")
table.add_row("training steps", f"{model.num_timesteps:,}")
table.add_row("training steps/s", f"{logged('time/fps')[-1]:,.0f}")
table.add_row("KL, mean and last update", f"{np.mean(kl):.2g}, {kl[-1]:.2g} nats per action")
table.add_row("clip range, first and last update", f"{clip_range[0]:.3g}, {clip_range[-1]:.3g}")
console.print(table)
python = shlex.quote(sys.executable)
for what, where in {
    "model": run / f"{ENV}.zip",
    "config": run / ENV / "config.yml",
    "TensorBoard logs": tensorboard,
    "open the logs": f"{python} -m tensorboard.main --logdir {shlex.quote(str(tensorboard))}",
    "play (on a screen)": f"{python} -m sb3_ppo_ext_zoo enjoy --env {ENV} -f {shlex.quote(str(options.folder))}",
}.items():
    console.print(f"{what + ':':<20}{where}", soft_wrap=True, highlight=False)

if np.mean(returns) < options.at_least:
    console.print(f"The mean return {np.mean(returns):.1f} is below {options.at_least:.0f}: not solved.", style="red")
    sys.exit(1)
