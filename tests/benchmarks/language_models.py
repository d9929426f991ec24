"""PPOX beside TRL 1.12's PPOTrainer on one job: response tokens per second of whole updates, and peak memory.

    SB3_PPO_EXT_TRL=FOLDER python tests/benchmarks/language_models.py [--updates 4] [--threads 2]

FOLDER holds TRL 1.12 (tests/language/test_trl_parity.py says how); without it PPOX alone is measured. The job: a GPT-2
of 4 layers and width 128, 512 tokens, 64 prompts of 16 tokens, responses of 32, 4 epochs of 4 minibatches. Each side is
a process of its own, one after the other; figures are medians over updates after the first. PPOX takes 16 optimizer
steps per update; TRL takes 4, because it accumulates over the minibatches of an epoch. Run it on a quiet machine; it is
not part of the test suite.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROMPTS, PROMPT, RESPONSE, VOCABULARY = 64, 16, 32, 512
SIDES = ("ppox shared", "ppox separate", "ppox lora", "trl")
ROOT = Path(__file__).parents[2]


def gpt2() -> Any:
    """The model, random: what is measured does not depend on its weights."""
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    shape = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 64}
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=VOCABULARY, **shape, **special))  # type: ignore[arg-type]  # numbers all


def prompts() -> list[list[int]]:
    """Random ids, none of them special."""
    return np.random.default_rng(0).integers(2, VOCABULARY, (4 * PROMPTS, PROMPT)).tolist()  # type: ignore[no-any-return]  # lists of ints


def of_ppox(kind: str, updates: int) -> list[float]:
    """Seconds of each update, rollout included."""
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_ppo_ext import PPOX
    from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv

    class Starts(BaseCallback):
        seconds: list[float] = []  # noqa: RUF012  # one run per process

        def _on_rollout_start(self) -> None:
            self.seconds.append(time.perf_counter())

        def _on_step(self) -> bool:
            return True

        _on_training_end = _on_rollout_start

    env = PromptVecEnv(
        prompts(), lambda given, answers: [float(len(set(one))) for one in answers],
        n_envs=PROMPTS, max_new_tokens=RESPONSE, vocab_size=VOCABULARY, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    policy: dict[str, Any] = {"model": gpt2, "value": "separate" if kind == "separate" else "shared"}
    if kind == "lora":
        policy["lora"] = {"r": 8}
    model = PPOX(
        LanguageModelPolicy, env, n_steps=1, batch_size=PROMPTS // 4, n_epochs=4, gamma=1.0, learning_rate=3e-6,
        ref_kl_coef=0.05, policy_kwargs=policy, device="cpu",
    )  # fmt: skip
    model.learn(updates * PROMPTS, callback=Starts(), log_interval=None)
    assert {float(state["step"]) for state in model.policy.optimizer.state.values()} == {16.0 * updates}
    return np.diff(Starts.seconds).tolist()


def of_trl(updates: int) -> list[float]:
    """The same of TRL: from one generation to the next."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerFast
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    starts: list[float] = []
    generation = ppo_trainer.batch_generation

    def timed(*args: Any, **kwargs: Any) -> Any:
        starts.append(time.perf_counter())
        return generation(*args, **kwargs)

    ppo_trainer.batch_generation = timed
    words = {f"t{index}": index for index in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="t2")),
        pad_token="t0",
        eos_token="t1",
        padding_side="left",
    )
    config = gpt2().config
    config.num_labels = 1
    critic, reward = GPT2ForSequenceClassification(config), GPT2ForSequenceClassification(config)
    data: Any = [{"input_ids": prompt} for prompt in prompts()]
    with tempfile.TemporaryDirectory() as folder:
        settings = PPOConfig(
            output_dir=folder, per_device_train_batch_size=PROMPTS // 4, gradient_accumulation_steps=4,
            num_mini_batches=4, num_ppo_epochs=4, total_episodes=(updates + 1) * PROMPTS,
            response_length=RESPONSE, learning_rate=3e-6,
            bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none", save_strategy="no",
            num_sample_generations=0,
        )  # fmt: skip
        PPOTrainer(
            args=settings, processing_class=tokenizer, model=gpt2(), ref_model=gpt2(), reward_model=reward,
            value_model=critic, train_dataset=data, eval_dataset=data,
        ).train()  # fmt: skip
    return np.diff(starts).tolist()


def measured(side: str, updates: int) -> None:
    """In a process of its own: prints seconds per update, and peak memory in MB."""
    seconds = of_trl(updates) if side == "trl" else of_ppox(side.partition(" ")[2], updates)
    status = Path("/proc/self/status").read_text()
    print(f"\nRESULT {statistics.median(seconds[1:])} {int(status.split('VmHWM:')[1].split()[0]) / 1024}")


def main() -> None:
    """Runs the sides in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=SIDES)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        measured(options.side, options.updates)
        return
    folder = os.environ.get("SB3_PPO_EXT_TRL", "")
    path = os.pathsep.join([str(ROOT), folder])
    env = {**os.environ, "PYTHONPATH": path, "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": str(options.threads)}
    for side in SIDES if folder else SIDES[:-1]:
        command = [sys.executable, "-W", "ignore", __file__, "--side", side, "--updates", str(options.updates)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        seconds, memory = map(float, done.stdout.split("RESULT")[1].split())
        print(f"{side:<14} {seconds:6.2f} s per update  {PROMPTS * RESPONSE / seconds:7.0f} tokens/s  {memory:5.0f} MB")


if __name__ == "__main__":
    main()
