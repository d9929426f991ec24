"""Prompts of every kind as padded token ids, and the order in which they are taken."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sb3_ppo_ext.language.envs.tables import from_table
from sb3_ppo_ext.language.envs.vocabulary import Vocabulary
from sb3_ppo_ext.language.inputs import at_least, columns_of, in_order, one_of

TOOLS = "tools"  # the column of each prompt's tools, where there is one
CHOICES = {"long_prompts": ("refuse", "cut"), "ended_prompts": ("refuse", "cut", "keep")}


class PromptSource:
    """All prompts: ids [M, P] padded on the left, their mask, and the texts for the reward function."""

    def __init__(
        self,
        prompts: Iterable[Any],
        vocabulary: Vocabulary,
        max_length: int | None,
        *,
        columns: Mapping[str, Iterable[Any]] | None,
        prompt_column: str = "prompt",
        tools: Any = None,
        **choices: str,
    ) -> None:
        for name, choice in choices.items():
            one_of(CHOICES[name], name, choice)
        values, of_table = from_table(prompts, prompt_column)
        listed = in_order(values)
        if listed is None:
            raise ValueError(f"prompts={reprlib.repr(prompts)}: a list of prompts or a table with them is needed")
        if not listed:
            raise ValueError("prompts is empty: at least one is needed")
        self.columns = {**of_table, **columns_of(columns, len(listed))}
        each_tools = self.columns.get(TOOLS, [None] * len(listed)) if tools is None else [tools] * len(listed)
        ids = [vocabulary.ids_of(prompt, row, each_tools[row]) for row, prompt in enumerate(listed)]
        if choices["ended_prompts"] != "keep":
            ids = [going_on(tokens, vocabulary, row, choices["ended_prompts"]) for row, tokens in enumerate(ids)]
        self.length = max(map(len, ids)) if max_length is None else at_least(1, "max_prompt_length", max_length)
        self.n_cut = self._count_too_long(ids, choices["long_prompts"])
        self.texts = [
            prompt if isinstance(prompt, str) else vocabulary.text_of(tokens)
            for prompt, tokens in zip(listed, ids, strict=True)
        ]
        self.ids = np.full((len(ids), self.length), vocabulary.pad, np.int64)
        self.mask = np.zeros(self.ids.shape, np.int8)
        for row, tokens in enumerate(ids):
            end = tokens[-self.length :]  # the end of a prompt is what the response answers
            self.ids[row, self.length - len(end) :] = end
            self.mask[row, self.length - len(end) :] = 1

    def prompt_ids(self) -> list[tuple[int, ...]]:
        """The ids of every prompt, without padding."""
        return [tuple(ids[mask > 0].tolist()) for ids, mask in zip(self.ids, self.mask, strict=True)]

    def _count_too_long(self, ids: list[list[int]], long_prompts: str) -> int:
        too_long = [row for row, tokens in enumerate(ids) if len(tokens) > self.length]
        if too_long and long_prompts == "refuse":
            raise ValueError(
                f"{len(too_long)} prompts are longer than max_prompt_length={self.length}, the first of them prompt "
                f'{too_long[0]} with {len(ids[too_long[0]])} tokens; raise it, or pass long_prompts="cut"'
            )
        return len(too_long)


def going_on(ids: list[int], vocabulary: Vocabulary, row: int, ended_prompts: str) -> list[int]:
    """The ids of a prompt that is not over, for ``ended_prompts`` "refuse" or "cut"; ``ValueError`` names its row."""
    stop = len(ids)
    while vocabulary.ends_early(ids[:stop]):
        stop -= 1
    if stop < len(ids) and ended_prompts == "refuse":
        raise ValueError(
            f"prompt {row} ends with the end-of-text token {ids[-1]}: its text is over, and there is nothing to go on "
            "with. Leave that token out (of chat messages, let the template write what an answer begins with), or pass "
            'ended_prompts="cut", which takes it off; "keep" is for a model whose prompts end so'
        )
    return ids[:stop]


class PromptOrder:
    """The order of the prompts: passes over all of them, each in a new random order."""

    def __init__(self, size: int, *, shuffle: bool) -> None:
        self.size, self.shuffle = size, shuffle
        self.left = np.zeros(0, np.int64)
        self.generator = np.random.default_rng()

    def seed(self, seed: int) -> None:
        """Begins a first pass in the order of this seed."""
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
        """The rest of this pass, and the generator of the passes after it."""
        return {"size": self.size, "left": self.left.tolist(), "generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict()``; ``ValueError`` where that is of other prompts."""
        if state["size"] != self.size:
            raise ValueError(
                f"the saved state is of an environment of {state['size']} prompts; this one has {self.size}: give it "
                "the prompts it had"
            )
        self.left = np.array(state["left"], np.int64)
        self.generator.bit_generator.state = state["generator"]
