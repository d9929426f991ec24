"""Prompts of every kind as padded token ids, and reward functions of every kind as checked numbers."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RewardFunction = Callable[..., Any]  # (prompts, responses, **columns) -> one number per response
LONG_PROMPTS = ("refuse", "cut")


@dataclass(frozen=True)
class Vocabulary:
    """Ids and their texts. Without a tokenizer a text is the list of its ids."""

    tokenizer: Any
    size: int
    eos: int
    pad: int

    @classmethod
    def of(cls, tokenizer: Any, vocab_size: int | None, eos: int | None, pad: int | None) -> Vocabulary:
        """From a tokenizer of transformers, or from the numbers themselves; given numbers take precedence."""
        if tokenizer is not None:
            vocab_size = len(tokenizer) if vocab_size is None else vocab_size
            eos = tokenizer.eos_token_id if eos is None else eos
            pad = tokenizer.pad_token_id if pad is None else pad
        if vocab_size is None:
            raise ValueError("vocab_size=None without a tokenizer: one of the two is needed")
        if eos is None:
            whose = "there is no tokenizer to take it from" if tokenizer is None else "the tokenizer has none"
            raise ValueError(f"eos_token_id=None, and {whose}: without an end-of-text token no response could end")
        return cls(tokenizer, vocab_size, eos, eos if pad is None else pad)

    def ids_of(self, prompt: Any, row: int) -> list[int]:
        """The token ids of one prompt; ``ValueError`` names its ``row``."""
        given = prompt.tolist() if hasattr(prompt, "tolist") else prompt
        if not isinstance(given, (str, list, tuple)):
            raise ValueError(f"prompt {row} is {given!r}: a text, a list of chat messages or a list of ids is needed")
        if isinstance(given, str) or (given and isinstance(given[0], Mapping)):
            if self.tokenizer is None:
                raise ValueError(f"prompt {row} is text: a tokenizer is needed, or token ids")
            given = self._ids_of_text(given, row) if isinstance(given, str) else self._ids_of_chat(given, row)
        if wrong := [one for one in given if not isinstance(one, numbers.Integral)]:
            raise ValueError(f"prompt {row} has {wrong[0]!r} among its ids: whole numbers are needed")
        ids = [int(one) for one in given]
        if not ids:
            raise ValueError(f"prompt {row} is empty: at least one token is needed (the begin-of-text token, say)")
        if not 0 <= min(ids) <= max(ids) < self.size:
            worst = max(ids) if max(ids) >= self.size else min(ids)
            raise ValueError(f"prompt {row} has the id {worst}; the vocabulary has {self.size} tokens, from 0 on")
        return ids

    def _ids_of_text(self, prompt: str, row: int) -> list[int]:
        ids: list[int] = self.tokenizer(prompt)["input_ids"]
        if self.tokenizer.bos_token_id is not None and ids[:2] == [self.tokenizer.bos_token_id] * 2:
            raise ValueError(
                f"prompt {row} begins with two {self.tokenizer.bos_token!r}: the tokenizer puts one before a text that "
                "has one already. Leave it out of the text; a chat template's output comes as messages, or as ids"
            )
        return ids

    def _ids_of_chat(self, messages: Sequence[Mapping[str, Any]], row: int) -> list[int]:
        """By the tokenizer's template, which writes the special tokens itself: they are not put there again."""
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"prompt {row} is chat messages, and the tokenizer has no chat_template: set it, or write the prompts "
                "as text"
            )
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
                raise ValueError(f"prompt {row} has the message {message!r}: one with 'role' and 'content' is needed")
        applied = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)
        ids: list[int] = applied["input_ids"]
        return ids

    def text_of(self, ids: Any) -> Any:
        """The text of ids, without special tokens; the ids up to the end-of-text token where there is no tokenizer."""
        if self.tokenizer is not None:
            return self.tokenizer.decode(ids, skip_special_tokens=True)
        kept = [int(one) for one in ids]
        return kept[:-1] if kept and kept[-1] == self.eos else kept


class PromptSource:
    """All prompts as ids [M, P] padded on the left, their mask, and their texts as the reward function sees them."""

    def __init__(
        self,
        prompts: Sequence[Any],
        vocabulary: Vocabulary,
        max_length: int | None,
        long_prompts: str,
        columns: Mapping[str, Sequence[Any]],
    ) -> None:
        if isinstance(prompts, (str, Mapping)):
            raise ValueError(f"prompts={prompts!r}: a list of prompts is needed")
        if len(prompts) == 0:
            raise ValueError("prompts is empty: at least one is needed")
        if long_prompts not in LONG_PROMPTS:
            raise ValueError(f"long_prompts={long_prompts!r}: one of {', '.join(map(repr, LONG_PROMPTS))} is needed")
        for name, column in columns.items():
            if len(column) != len(prompts):
                raise ValueError(f"columns[{name!r}] has {len(column)} values for {len(prompts)} prompts")
        ids = [vocabulary.ids_of(prompt, row) for row, prompt in enumerate(prompts)]
        self.length = max(map(len, ids)) if max_length is None else max_length
        too_long = [row for row, one in enumerate(ids) if len(one) > self.length]
        if too_long and long_prompts == "refuse":
            raise ValueError(
                f"{len(too_long)} prompts are longer than max_prompt_length={self.length}, the first of them prompt "
                f'{too_long[0]} with {len(ids[too_long[0]])} tokens; raise it, or pass long_prompts="cut"'
            )
        self.n_cut = len(too_long)
        self.columns = dict(columns)
        self.texts = [
            prompt if isinstance(prompt, str) else vocabulary.text_of(one)
            for prompt, one in zip(prompts, ids, strict=True)
        ]
        self.ids = np.full((len(ids), self.length), vocabulary.pad, np.int64)
        self.mask = np.zeros(self.ids.shape, np.int8)
        for row, one in enumerate(ids):
            kept = one[-self.length :]  # the end of a prompt is what the response answers
            self.ids[row, self.length - len(kept) :] = kept
            self.mask[row, self.length - len(kept) :] = 1


def scores_of(
    reward_fn: RewardFunction, prompts: list[Any], responses: list[Any], columns: dict[str, list[Any]]
) -> np.ndarray:
    """One finite score per response, as float32 [N]; ``ValueError`` names the response that has none."""
    given = reward_fn(prompts, responses, **columns)
    scores = given.tolist() if hasattr(given, "tolist") else list(given) if isinstance(given, Sequence) else given
    if not isinstance(scores, list) or len(scores) != len(responses):
        what = f"{len(scores)} scores" if isinstance(scores, list) else f"a {type(given).__name__}"
        raise ValueError(f"reward_fn returned {what} for {len(responses)} responses; one number for each is needed")
    for row, score in enumerate(scores):
        if not isinstance(score, numbers.Real) or not np.isfinite(float(score)):
            raise ValueError(
                f"reward_fn returned {score!r} for response {row} of {len(responses)}, {responses[row]!r} to the "
                f"prompt {prompts[row]!r}; a finite number is needed"
            )
    return np.array(scores, np.float32)


class PromptOrder:
    """Which prompt comes next: passes over all of them, each in a new random order."""

    def __init__(self, size: int, *, shuffle: bool) -> None:
        self.size, self.shuffle = size, shuffle
        self.left = np.zeros(0, np.int64)
        self.generator = np.random.default_rng()

    def seed(self, seed: int) -> None:
        """Begins anew."""
        self.generator = np.random.default_rng(seed)
        self.left = np.zeros(0, np.int64)

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` row numbers."""
        while len(self.left) < count:
            more = self.generator.permutation(self.size) if self.shuffle else np.arange(self.size)
            self.left = np.concatenate((self.left, more))
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def state_dict(self) -> dict[str, Any]:
        """What is left of this pass, and the generator."""
        return {"left": self.left.copy(), "generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self.left = np.array(state["left"])
        self.generator.bit_generator.state = state["generator"]
