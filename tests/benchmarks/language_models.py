"""PPOX beside TRL 1.12's PPOTrainer on one job: response tokens per second of whole updates, and peak memory.

    SB3_PPO_EXT_TRL=FOLDER python -m tests.benchmarks.language_models [--updates 4] [--rounds 3] [--threads 2]
        [--side NAME ...] [--layers 4] [--width 128]
    python -m tests.benchmarks.language_models --gpu
    python -m tests.benchmarks.language_models --real [--rows 16 64] [--rounds 3] [--threads 2]

FOLDER holds TRL 1.12 (tests/language/training/test_trl_parity.py says how), or several joined by ":", where datasets,
which it imports, lies elsewhere; without it PPOX alone is measured. The job: a GPT-2 of 4 layers and width 128, 512
tokens, 64 prompts of 16 tokens, responses of 32, 4 epochs of 4 minibatches. Each side is a process of its own, one
after the other, and all of them again in every round; figures are medians over rounds, and in each over the updates
after the first, in which graphs are compiled. PPOX takes 16 optimizer steps per update; TRL takes 4, because it
accumulates over the minibatches of an epoch (and 16 where its data end). "above imports" is the peak less what the
process held before it trained. Run it on a quiet machine; it is not part of the test suite.

``--gpu`` is PPOX alone, eager and compiled, on a random model of Qwen2-0.5B's shape in bfloat16, 64 prompts of 128
tokens and responses of 128, 16 responses at a time. ``--real`` is that of ``real_language_model.py``.
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
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks import real_language_model
from tests.benchmarks.language_jobs import (
    EPOCHS,
    MINIBATCHES,
    PARTS,
    PROMPTS,
    SMALL,
    VOCABULARY,
    Shape,
    gpt2,
    learned,
    prompts,
    qwen2,
)

RESPONSE = 32
KINDS = ("shared", "separate", "lora")
SIDES = (*(f"{kind} {how}" for kind in KINDS for how in ("eager", "compiled")), "trl")
ROOT = Path(__file__).parents[2]

Found = dict[str, Any]  # of one process


def of_ppox(kind: str, updates: int, shape: Shape, *, compiled: bool = False) -> dict[str, Any]:
    """Seconds of each update, rollout included, their parts, and optimizer steps of all of them."""
    policy: dict[str, Any] = {"value": "separate" if kind == "separate" else "shared"}
    if kind == "lora":
        policy["lora"] = {"r": 8}
    job: dict[str, Any] = {"response": RESPONSE, "vocabulary": VOCABULARY, "policy": policy}
    model, seconds, parts = learned(updates, partial(gpt2, shape), prompts(), compile=compiled, device="cpu", **job)
    (steps,) = {float(state["step"]) for state in model.policy.optimizer.state.values()}
    return {"seconds": seconds, "steps": steps / updates, "parts": parts}


def of_trl(updates: int, shape: Shape) -> dict[str, Any]:
    """The same of TRL: from one generation to the next."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerFast
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    starts: list[float] = []
    steps: list[int] = []
    generation = ppo_trainer.batch_generation

    def timed(*args: Any, **kwargs: Any) -> Any:
        starts.append(time.perf_counter())
        return generation(*args, **kwargs)

    ppo_trainer.batch_generation = timed
    register_optimizer_step_post_hook(lambda *_: steps.append(len(starts)))
    words = {f"t{index}": index for index in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="t2")),
        pad_token="t0",
        eos_token="t1",
        padding_side="left",
    )
    config = gpt2(shape).config
    config.num_labels = 1
    critic, reward = GPT2ForSequenceClassification(config), GPT2ForSequenceClassification(config)
    data: Any = [{"input_ids": prompt} for prompt in prompts()]
    with tempfile.TemporaryDirectory() as folder:
        settings = PPOConfig(
            output_dir=folder, per_device_train_batch_size=PROMPTS // MINIBATCHES, gradient_accumulation_steps=4,
            num_mini_batches=MINIBATCHES, num_ppo_epochs=EPOCHS, total_episodes=(updates + 1) * PROMPTS,
            response_length=RESPONSE, learning_rate=3e-6,
            bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none", save_strategy="no",
            num_sample_generations=0,
        )  # fmt: skip
        PPOTrainer(
            args=settings, processing_class=tokenizer, model=gpt2(shape), ref_model=gpt2(shape), reward_model=reward,
            value_model=critic, train_dataset=data, eval_dataset=data,
        ).train()  # fmt: skip
    return {"seconds": np.diff(starts).tolist(), "steps": statistics.median(Counter(steps).values()), "parts": []}


def peak() -> float:
    """The most this process has held, in MB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def measured(side: str, updates: int, shape: Shape) -> None:
    """In a process of its own: prints what ``report`` shows."""
    if side == "trl":
        import trl.experimental.ppo  # noqa: F401
        from transformers import GPT2ForSequenceClassification  # noqa: F401
    else:
        import sb3_ppo_ext.language  # noqa: F401
    gpt2()
    imported = peak()
    kind, _, how = side.partition(" ")
    found = of_trl(updates, shape) if side == "trl" else of_ppox(kind, updates, shape, compiled=how == "compiled")
    parts = np.median(found["parts"][1:], axis=0).tolist() if found["parts"] else []
    told = {"seconds": statistics.median(found["seconds"][1:]), "steps": found["steps"], "parts": parts}
    print("\nRESULT", json.dumps({**told, "peak": peak(), "imported": imported}))


def report(side: str, rounds: list[Found], trl: list[Found] | None) -> None:
    """One line of medians, beside TRL's where there are any."""
    seconds, memory, imported, steps = (median_of(rounds, name) for name in ("seconds", "peak", "imported", "steps"))
    line = f"{side:<17} {seconds:6.2f} s per update {PROMPTS * RESPONSE / seconds:6.0f} tokens/s"
    line += f" {steps:3.0f} steps {memory:5.0f} MB, {memory - imported:4.0f} above imports"
    if trl is not None and side != "trl":
        ratios = [theirs["seconds"] / own["seconds"] for theirs, own in zip(trl, rounds, strict=True)]
        line += f"   {median_of(trl, 'seconds') / seconds:4.2f}x the tokens/s of TRL"
        line += f" ({min(ratios):.2f} to {max(ratios):.2f}), {memory / median_of(trl, 'peak'):4.2f}x its memory"
    print(line)
    if rounds[0]["parts"]:
        each = zip(PARTS, np.median([found["parts"] for found in rounds], axis=0), strict=True)
        print(f"{'':<17} {', '.join(f'{name} {part:.2f} s' for name, part in each)}")


def median_of(rounds: list[Found], name: str) -> float:
    """Of one figure over the rounds."""
    return float(statistics.median(found[name] for found in rounds))


def on_a_gpu(updates: int) -> None:
    """Tokens per second and peak memory of a model of half a billion parameters; the first update apart."""
    if not torch.cuda.is_available():
        sys.exit("--gpu: there is no CUDA device here")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    job: dict[str, Any] = {"response": 128, "vocabulary": 151_936, "policy": {"dtype": "bfloat16"}, "device": "cuda"}
    for how in ("eager", "compiled"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        buffer = {"micro_batch_tokens": 16 * 256}
        _, seconds, parts = learned(
            updates, qwen2, prompts(128), compile=how == "compiled", rollout_buffer_kwargs=buffer, **job
        )
        later, memory = statistics.median(seconds[1:]), torch.cuda.max_memory_allocated() / 2**30
        print(f"{how:<9} {PROMPTS * 128 / later:7.0f} tokens/s {memory:5.1f} GiB; the first update {seconds[0]:.1f} s")
        each = zip(PARTS, np.median(parts[1:], axis=0), strict=True)
        print(f"{'':<9} {', '.join(f'{name} {part:.2f} s' for name, part in each)}", flush=True)


def main() -> None:
    """Runs the sides in turn, TRL first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, nargs="+", default=SIDES)
    parser.add_argument("--layers", type=int, default=SMALL.layers)
    parser.add_argument("--width", type=int, default=SMALL.width, help="a multiple of 32")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64], help="of --real, multiples of 8")
    parser.add_argument("--here", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.real:
        return real_language_model.run(options.rows, options.rounds)
    if options.gpu:
        return on_a_gpu(options.updates)
    if options.here:
        return measured(options.here, options.updates, Shape(options.layers, options.width))
    folder = os.environ.get("SB3_PPO_EXT_TRL", "")
    path = os.pathsep.join([str(ROOT), folder])
    env = {**os.environ, "PYTHONPATH": path, "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, "-W", "ignore", __file__]
    command += [f"--{name}={getattr(options, name)}" for name in ("updates", "threads", "layers", "width")]
    sides = [side for side in sorted(options.side, key=lambda side: side != "trl") if folder or side != "trl"]
    found: dict[str, list[Found]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side in sides:
            done = subprocess.run([*command, "--here", side], env=env, stdout=subprocess.PIPE, text=True, check=True)
            found[side].append(json.loads(done.stdout.split("RESULT")[1]))
    for side in sides:
        report(side, found[side], found.get("trl"))


if __name__ == "__main__":
    main()
