"""PromptCopy-v0: the prompt is a word, the right response is the word once more.

The model has read copies in which two syllables of five are random, so it knows what is asked for, and does it badly.
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
from sb3_ppo_ext_zoo.language.pretraining import Pretrained
from sb3_ppo_ext_zoo.language.prompts import SharedTaskEnv

SYLLABLES = tuple(consonant + vowel for consonant in "bdfklmnr" for vowel in "aeiou")
LENGTH = 3  # syllables of a word
WRONG = 0.4  # of the syllables of a copy in the corpus
HELD_OUT = 256


@functools.cache
def words(split: str) -> tuple[str, ...]:
    """The words of "training" (2000) or of "held_out" (256); no word is in both, nor is one of either in the corpus."""
    drawn = random.Random(1).sample(list(itertools.product(SYLLABLES, repeat=LENGTH)), HELD_OUT + 2000)
    parts = {"held_out": drawn[:HELD_OUT], "training": drawn[HELD_OUT:]}
    if split not in parts:
        raise ValueError(f"split={split!r}: one of {', '.join(map(repr, parts))} is needed")
    return tuple(map("".join, parts[split]))


@functools.cache
def bad_copies() -> tuple[str, ...]:
    """The corpus: lines as ``bafelo > banelo``, of other words than those of the task."""
    chance = random.Random(2)
    used = {*words("training"), *words("held_out")}
    lines: list[str] = []
    while len(lines) < 20_000:
        word = chance.choices(SYLLABLES, k=LENGTH)
        if "".join(word) not in used:
            copy = [chance.choice(SYLLABLES) if chance.random() < WRONG else syllable for syllable in word]
            lines.append(f"copy {''.join(word)} > {''.join(copy)}")
    return tuple(lines)


MODEL = Pretrained("PromptCopy-v0", bad_copies, vocabulary=352, positions=16, steps=300)


def likeness(prompts: Sequence[str], responses: Sequence[str], word: Sequence[str]) -> list[float]:
    """Half of the score for the fraction of letters in their place, half for the whole word; 1 is a perfect copy."""
    copies = [response.strip() for response in responses]
    return [0.5 * in_place(copy, one) + 0.5 * (copy == one) for copy, one in zip(copies, word, strict=True)]


def in_place(copy: str, word: str) -> float:
    """The fraction of places, of the longer of the two, with the same letter."""
    return sum(a == b for a, b in zip(copy, word, strict=False)) / max(len(copy), len(word))


@functools.cache
def task(split: str) -> PromptTask:
    """Prompts, right answers and score."""
    chosen = words(split)
    return PromptTask(
        [f"copy {word} >" for word in chosen],
        likeness,
        MODEL.tokenizer(),
        max_new_tokens=6,
        max_prompt_length=9,
        columns={"word": chosen},
    )


class PromptCopyEnv(SharedTaskEnv):
    """One word to copy at a time, from ``split`` "training" or "held_out"."""

    def __init__(self, split: str = "training", render_mode: str | None = None) -> None:
        super().__init__(task(split), render_mode)


class PromptCopyPolicy(LanguageModelPolicy):
    """A ``LanguageModelPolicy`` whose model is the one made for PromptCopy-v0, after ``pretraining_steps`` steps."""

    def __init__(self, *arguments: Any, pretraining_steps: int = MODEL.steps, **options: Any) -> None:
        super().__init__(*arguments, **{"model": replace(MODEL, steps=pretraining_steps), **options})
