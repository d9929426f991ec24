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
        if isinstance(prompt, str) or (len(prompt) and isinstance(prompt[0], Mapping)):
            if self.tokenizer is None:
                raise ValueError(f"prompt {row} is text: a tokenizer is needed, or token ids")
            if isinstance(prompt, str):
                ids = self.tokenizer(prompt)["input_ids"]
            else:
                ids = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)[
                    "input_ids"
                ]
        else:
            ids = prompt
        ids = [int(one) for one in ids]
        if not ids:
            raise ValueError(f"prompt {row} is empty: at least one token is needed (the begin-of-text token, say)")
        if not 0 <= min(ids) <= max(ids) < self.size:
            worst = max(ids) if max(ids) >= self.size else min(ids)
            raise ValueError(f"prompt {row} has the id {worst}; the vocabulary has {self.size} tokens, from 0 on")
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
