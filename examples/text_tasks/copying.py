"""PromptCopy-v0: the prompt is a word, the right response is the same word.

The model was pretrained on copies in which two syllables of five are random: it copies, and badly.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sb3_ppo_ext.language import LanguageModelPolicy
from sb3_ppo_ext.language.envs.prompt_env import PromptTask
from text_tasks.pretraining import Pretrained
from text_tasks.prompts import SharedTaskEnv

SYLLABLES = tuple(consonant + vowel for consonant in "bdfklmnr" for vowel in "aeiou")
LENGTH = 3  # syllables of a word
WRONG = 0.4  # fraction of random syllables in the copies of the corpus
HELD_OUT = 256


@functools.cache
def words(split: str) -> tuple[str, ...]:
    """The words of "training" (2000) or of "held_out" (256); the two splits and the corpus share no word."""
    drawn = random.Random(1).sample(list(itertools.product(SYLLABLES, repeat=LENGTH)), HELD_OUT + 2000)
    splits = {"held_out": drawn[:HELD_OUT], "training": drawn[HELD_OUT:]}
    if split not in splits:
        raise ValueError(f"split={split!r}: one of {', '.join(map(repr, splits))} is needed")
    return tuple(map("".join, splits[split]))


@functools.cache
def bad_copies() -> tuple[str, ...]:
    """The corpus: 20,000 lines such as ``copy bafelo > banelo``, none with a word of the task."""
    rng = random.Random(2)
    used = {*words("training"), *words("held_out")}
    lines: list[str] = []
    while len(lines) < 20_000:
        word = rng.choices(SYLLABLES, k=LENGTH)
        if "".join(word) not in used:
            copy = [rng.choice(SYLLABLES) if rng.random() < WRONG else syllable for syllable in word]
            lines.append(f"copy {''.join(word)} > {''.join(copy)}")
    return tuple(lines)


MODEL = Pretrained("PromptCopy-v0", bad_copies, vocabulary=352, positions=16, steps=300)


def likeness(prompts: Sequence[str], responses: Sequence[str], word: Sequence[str]) -> list[float]:
    """Half of the score is the fraction of matching letters, half the whole word; 1 is a perfect copy."""
    copies = [response.strip() for response in responses]
    return [0.5 * matching(copy, right) + 0.5 * (copy == right) for copy, right in zip(copies, word, strict=True)]


def matching(copy: str, word: str) -> float:
    """The fraction of positions, counted over the longer text, with the same letter."""
    return sum(a == b for a, b in zip(copy, word, strict=False)) / max(len(copy), len(word))


@functools.cache
def task(split: str) -> PromptTask:
    """The prompts, right answers and score of a split."""
    chosen = words(split)
    return PromptTask(
        [f"copy {word} >" for word in chosen],
        likeness,
        MODEL.tokenizer(),
        max_new_tokens=6,
        max_prompt_length=9,
        columns={"word": chosen},
        success=1.0,
    )


class PromptCopyEnv(SharedTaskEnv):
    """Each episode is one word to copy, from ``split`` "training" or "held_out"."""

    def __init__(self, split: str = "training", render_mode: str | None = None) -> None:
        super().__init__(task(split), render_mode)


class PromptCopyPolicy(LanguageModelPolicy):
    """A ``LanguageModelPolicy`` whose model is pretrained for PromptCopy-v0 in ``pretraining_steps`` steps."""

    def __init__(self, *arguments: Any, pretraining_steps: int = MODEL.steps, **options: Any) -> None:
        super().__init__(*arguments, **{"model": replace(MODEL, steps=pretraining_steps), **options})
