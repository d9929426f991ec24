"""What checkpoints cost: one of them, a run with them, ``learn()`` without them, and the start of a resumed run.

``python -m tests.benchmarks.checkpoints [--lora]``. Medians of turns. The last needs the ``lm`` extra.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.env_util import make_vec_env

from sb3_ppo_ext import PPOX, Checkpoints
from sb3_ppo_ext.checkpoints.folder import size_of, stored
from tests.benchmarks.measuring import in_turn, timed

SETTINGS: dict[str, Any] = {"n_steps": 256, "batch_size": 64, "n_epochs": 10, "seed": 0, "device": "cpu"}
STEPS = 2048 * 10


def model_of(env_id: str = "CartPole-v1", **options: Any) -> PPOX:
    return PPOX("MlpPolicy", make_vec_env(env_id, 8), **{**SETTINGS, "compile": False, **options})


def one_checkpoint(env_id: str, repeats: int) -> None:
    """The seconds of a checkpoint of a 64x64 policy, and its parts."""
    with tempfile.TemporaryDirectory() as folder:
        model = model_of(env_id)
        model.learn(2048, checkpoint=Checkpoints(folder))
        writer, checkpoints = model._checkpoints.writer, model._checkpoints
        assert writer is not None
        checkpoints._callback = model._init_callback(None)
        state = checkpoints._state(model, exact=True)

        def state_alone() -> None:
            checkpoints._state(model, exact=True)

        def whole() -> None:
            writer.write(model, checkpoints._state(model, exact=True), {"finished": False})

        model_zip = Path(folder) / "model.zip"
        sides = {"state": state_alone, "PPOX.save": lambda: model.save(model_zip), "checkpoint": whole}
        seconds = in_turn(repeats, {name: functools.partial(timed, call) for name, call in sides.items()})
        size = size_of(stored(Path(folder))[0])
        parts = ", ".join(f"{name} {1e3 * statistics.median(values):.1f} ms" for name, values in seconds.items())
        print(f"{env_id}, 8 environments: {parts}; {size:,} bytes ({len(state)} entries)")


def share_of_a_run(repeats: int) -> None:
    """``learn()`` with no checkpoints, with the default interval, and with one after each update."""

    def run(every: str | float | None) -> float:
        with tempfile.TemporaryDirectory() as folder:
            model = model_of()
            checkpoint = None if every is None else Checkpoints(folder, every=every)
            model.learn(2048)
            start = time.perf_counter()
            model.learn(STEPS, checkpoint=checkpoint)
            return time.perf_counter() - start

    seconds = in_turn(repeats, {"without": lambda: run(None), "60s": lambda: run("60s"), "0": lambda: run(0)})
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"learn({STEPS}) on CartPole, eager: " + ", ".join(f"{name} {value:.3f} s" for name, value in medians.items())
    )
    per_save = (medians["0"] - medians["without"]) / (STEPS // 2048 + 1)
    print(f"a checkpoint in the run: {1e3 * per_save:.1f} ms, {per_save / 60:.2%} of the time at every='60s'")


def start_of_a_resumed_run(repeats: int) -> None:
    """``PPOX.load`` against ``PPOX.resume``, in a process that has imported everything."""
    with tempfile.TemporaryDirectory() as folder:
        model_of().learn(2048, checkpoint=Checkpoints(folder))
        path = stored(Path(folder))[0] / "model.zip"
        sides = {
            "load": lambda: timed(lambda: PPOX.load(path, env=make_vec_env("CartPole-v1", 8), device="cpu")),
            "resume": lambda: timed(lambda: PPOX.resume(folder, make_vec_env("CartPole-v1", 8), device="cpu")),
        }
        seconds = {name: statistics.median(values) for name, values in in_turn(repeats, sides).items()}
        print(", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in seconds.items()))


def lora_run() -> None:
    """A GPT-2 of 133 million parameters with an adapter: what a checkpoint holds."""
    from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv
    from tests.benchmarks.language_jobs import VOCABULARY, Shape, gpt2, prompts

    def score(asked: list[list[int]], answers: list[list[int]]) -> list[float]:
        return [float(len(answer)) for answer in answers]

    env = PromptVecEnv(
        prompts(), score,
        n_envs=4, max_new_tokens=4, vocab_size=VOCABULARY, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        policy = {"model": lambda: gpt2(Shape(layers=12, width=960)), "lora": {"r": 8}}
        settings: dict[str, Any] = {"n_steps": 1, "batch_size": 4, "n_epochs": 1, "compile": False, "device": "cpu"}
        model = PPOX(LanguageModelPolicy, env, policy_kwargs=policy, **settings)
        model.learn(4, checkpoint=Checkpoints(folder))
        files = {path.name: path.stat().st_size for path in stored(Path(folder))[0].iterdir()}
        print("LoRA on 133 million parameters: " + ", ".join(f"{name} {size:,} bytes" for name, size in files.items()))


def main() -> None:
    """Prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lora", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores")
    for env_id in ("CartPole-v1", "HalfCheetah-v5"):
        one_checkpoint(env_id, 3 * arguments.repeats)
    share_of_a_run(arguments.repeats)
    start_of_a_resumed_run(arguments.repeats)
    if arguments.lora:
        lora_run()


if __name__ == "__main__":
    main()
