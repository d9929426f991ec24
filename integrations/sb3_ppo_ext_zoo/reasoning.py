"""Reasoning-v0: questions of reasoning-gym as an environment, all of it from a settings file.

Reasoning-v0:
  policy: sb3_ppo_ext.language.LanguageModelPolicy
  policy_kwargs: {model: FOLDER, lora: {r: 16}, value: none}
  env_kwargs: {tasks: {gcd: {max_value: 40}}, tokenizer: FOLDER, size: 400, held_out: 50, answer: number}
  eval_env_kwargs: {split: held_out}
  vec_env: {prompts: {group_size: 8}}
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from sb3_ppo_ext.language import reasoning_prompts
from sb3_ppo_ext.language.envs.prompt_env import PromptTask
from sb3_ppo_ext.language.inputs import one_of
from sb3_ppo_ext_zoo.rendered_prompts import RenderedPromptEnv

SPLITS = ("training", "held_out")


class ReasoningEnv(RenderedPromptEnv):
    """One question is an episode; all environments of a process with the same arguments share the questions.

    :param tasks: as in ``reasoning_prompts``: a name, several, or name -> configuration
    :param tokenizer: folder, GGUF file or hub name
    :param split: questions of "training", or those "held_out"
    :param max_new_tokens: the longest response
    :param questions: the other arguments of ``reasoning_prompts``
    """

    def __init__(
        self,
        tasks: Any,
        tokenizer: str,
        *,
        split: str = "training",
        max_new_tokens: int = 16,
        size: int = 1000,
        held_out: int = 100,
        chat: bool = True,
        render_mode: str | None = None,
        **questions: Any,
    ) -> None:
        one_of(SPLITS, "split", split)
        arguments = {"tasks": tasks, "size": size, "held_out": held_out, "chat": chat, **questions}
        self._begin(shared_task(json.dumps(arguments), tokenizer, max_new_tokens, split), shuffle=split == "training")
        self.render_mode, self.last = render_mode, ""


@functools.lru_cache(maxsize=8)
def shared_task(arguments: str, tokenizer: str, max_new_tokens: int, split: str) -> PromptTask:
    """The questions of a split as a task; prompts of both splits have the same number of slots."""
    options: Mapping[str, Any] = json.loads(arguments)
    questions = reasoning_prompts(**options)
    chosen = questions.train if split == "training" else questions.held_out
    if not chosen:
        raise ValueError(f"split={split!r}: there are no such questions with held_out={options['held_out']}")
    every = PromptTask(
        [*questions.train, *questions.held_out],
        tokenizer=tokenizer_of(tokenizer),
        max_new_tokens=max_new_tokens,
        **questions.scoring,
    )
    return every.with_prompts(chosen)


def tokenizer_of(source: str) -> Any:
    """The tokenizer of a folder, a GGUF file or a hub name."""
    path = Path(source)
    if path.suffix == ".gguf":
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return AutoTokenizer.from_pretrained(source)
