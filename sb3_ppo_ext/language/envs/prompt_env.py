"""The task of environments in which one step is one response; the environment of one prompt, for gymnasium."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from transformers import PreTrainedModel

from sb3_ppo_ext.language.envs.classifier import as_reward_function
from sb3_ppo_ext.language.envs.prompts import PromptOrder, PromptSource, RewardFunction, scores_of
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS, ResponseSpace, prompt_space
from sb3_ppo_ext.language.envs.vocabulary import Vocabulary
from sb3_ppo_ext.language.model.end_tokens import EndTokens
from sb3_ppo_ext.unknown_arguments import accepts_only

Observation = dict[str, np.ndarray]


class PromptTask:
    """Prompts, a tokenizer, a reward function, and the spaces that follow from them."""

    def __init__(
        self,
        prompts: Iterable[Any],
        reward_fn: RewardFunction | PreTrainedModel,
        tokenizer: Any = None,
        *,
        max_new_tokens: int,
        max_prompt_length: int | None = None,
        long_prompts: str = "refuse",
        ended_prompts: str = "refuse",
        columns: Mapping[str, Iterable[Any]] | None = None,
        vocab_size: int | None = None,
        eos_token_id: EndTokens | None = None,
        pad_token_id: int | None = None,
    ) -> None:
        self.vocabulary = Vocabulary.of(tokenizer, vocab_size, eos_token_id, pad_token_id)
        choices = {"long_prompts": long_prompts, "ended_prompts": ended_prompts}
        self.source = PromptSource(prompts, self.vocabulary, max_prompt_length, columns=columns, **choices)
        self.reward_fn = as_reward_function(reward_fn, reads_text=tokenizer is not None)
        size = self.vocabulary.size
        self.action_space = ResponseSpace(size, max_new_tokens, self.vocabulary.ends, self.vocabulary.pad)
        self.observation_space = prompt_space(size, self.source.length)
        self.scoring_seconds = 0.0  # that ``reward_fn`` took since ``take_scoring_seconds``

    def observe(self, rows: np.ndarray) -> Observation:
        """The prompts of these rows as ids and mask, [N, P] each."""
        return {INPUT_IDS: self.source.ids[rows], ATTENTION_MASK: self.source.mask[rows]}

    def score(self, rows: np.ndarray, responses: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Scores [N] of the responses [N, L] to the prompts of ``rows``, and the info of each response."""
        masks = self.action_space.mask_of(responses)
        ids = [response[mask] for response, mask in zip(responses, masks, strict=True)]
        prompts = [self.source.texts[row] for row in rows]
        texts = [self.vocabulary.text_of(response) for response in ids]
        started = time.perf_counter()
        columns = {name: [column[row] for row in rows] for name, column in self.source.columns.items()}
        scores = scores_of(self.reward_fn, prompts, texts, columns)
        self.scoring_seconds += time.perf_counter() - started
        infos: list[dict[str, Any]] = []
        cut_off = self.action_space.cut_off(responses, masks).tolist()
        for prompt, text, cut, mask, score in zip(prompts, texts, cut_off, masks, scores, strict=True):
            episode = {"r": float(score), "l": int(mask.sum())}
            infos.append({"prompt": prompt, "response": text, "cut_off": cut, "episode": episode})
        return scores, infos


class PromptEnvironment:
    """A task, the prompts that are being answered, and the order of those that follow."""

    task: PromptTask
    order: PromptOrder
    rows: np.ndarray  # [N], the prompts that are being answered

    @property
    def n_cut(self) -> int:
        """The number of prompts that were longer than ``max_prompt_length``."""
        return self.task.source.n_cut

    def take_scoring_seconds(self) -> float:
        """The seconds that ``reward_fn`` took since the last call of this."""
        seconds, self.task.scoring_seconds = self.task.scoring_seconds, 0.0
        return seconds

    def state_dict(self) -> dict[str, Any]:
        """The place among the prompts: with a model's file, what a run needs to continue as if it had never stopped."""
        return {"rows": self.rows.tolist(), "order": self.order.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict()``; ``PPOX.load(..., force_reset=False)`` keeps a model from resetting it."""
        rows = np.array(state["rows"], np.int64)
        if rows.shape != self.rows.shape:
            raise ValueError(
                f"the saved state is of {len(rows)} prompts at a time, this environment of {len(self.rows)}"
            )
        self.order.load_state_dict(state["order"])
        self.rows = rows


class PromptEnv(PromptEnvironment, gym.Env[Observation, np.ndarray]):
    """One prompt at a time, for ``gym.make``, the zoo and whatever takes a gymnasium environment.

    The arguments are those of ``PromptVecEnv`` but ``n_envs``.
    """

    rows = np.zeros(1, np.int64)  # before the first reset

    @accepts_only(PromptTask.__init__)
    def __init__(
        self,
        prompts: Iterable[Any],
        reward_fn: RewardFunction | PreTrainedModel,
        tokenizer: Any = None,
        *,
        max_new_tokens: int,
        shuffle: bool = True,
        **options: Any,
    ) -> None:
        self.task = PromptTask(prompts, reward_fn, tokenizer, max_new_tokens=max_new_tokens, **options)
        self.order = PromptOrder(len(self.task.source.ids), shuffle=shuffle)
        self.observation_space = self.task.observation_space  # type: ignore[assignment]  # a Dict of arrays
        self.action_space = self.task.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """The next prompt."""
        super().reset(seed=seed)
        if seed is not None:
            self.order.seed(seed)
        self.rows = self.order.take(1)
        return self._observation(), {}

    def _observation(self) -> Observation:
        return {name: array[0] for name, array in self.task.observe(self.rows).items()}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Scores the response [L] and ends the episode."""
        scores, infos = self.task.score(self.rows, np.asarray(action)[None])
        info = {name: value for name, value in infos[0].items() if name != "episode"}  # Monitor's to write
        return self._observation(), float(scores[0]), True, False, info
