"""The task of environments in which one step is one response; the environment of one prompt, for gymnasium."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from transformers import PreTrainedModel

from sb3_ppo_ext.language.envs.classifier import as_reward_function
from sb3_ppo_ext.language.envs.prompts import TOOLS, PromptOrder, PromptSource
from sb3_ppo_ext.language.envs.rewards import (
    CUT_OFF,
    RewardFunction,
    Rewards,
    Scores,
    Success,
    named_functions,
    require_taken,
)
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS, ResponseSpace, prompt_space
from sb3_ppo_ext.language.envs.vocabulary import Vocabulary
from sb3_ppo_ext.language.model.end_tokens import EndTokens
from sb3_ppo_ext.unknown_arguments import accepts_only

Observation = dict[str, np.ndarray]
OneReward = RewardFunction | PreTrainedModel
RewardSource = OneReward | Sequence[OneReward] | Mapping[str, OneReward]


class Scored(NamedTuple):
    """N responses and their scores."""

    prompts: list[Any]
    texts: list[Any]
    lengths: np.ndarray  # [N], in tokens
    cut_off: np.ndarray  # [N], True where a response did not end by itself
    scores: Scores
    success: np.ndarray | None  # [N], None without a rule of success


class PromptTask:
    """Prompts, a tokenizer, reward functions, and the spaces that follow from them."""

    def __init__(
        self,
        prompts: Any,
        reward_fn: RewardSource,
        tokenizer: Any = None,
        *,
        max_new_tokens: int,
        max_prompt_length: int | None = None,
        long_prompts: str = "refuse",
        ended_prompts: str = "refuse",
        prompt_column: str = "prompt",
        columns: Mapping[str, Iterable[Any]] | None = None,
        tools: list[Any] | None = None,
        reward_weights: Sequence[float] | Mapping[str, float] | None = None,
        success: Success | None = None,
        vocab_size: int | None = None,
        eos_token_id: EndTokens | None = None,
        pad_token_id: int | None = None,
    ) -> None:
        self.arguments = {name: value for name, value in locals().items() if name not in ("self", "prompts", "columns")}
        self.vocabulary = Vocabulary.of(tokenizer, vocab_size, eos_token_id, pad_token_id)
        choices = {"long_prompts": long_prompts, "ended_prompts": ended_prompts}
        self.source = PromptSource(
            prompts,
            self.vocabulary,
            max_prompt_length,
            columns=columns,
            prompt_column=prompt_column,
            tools=tools,
            **choices,
        )
        reads_text = tokenizer is not None
        functions = {
            name: as_reward_function(function, reads_text=reads_text)
            for name, function in named_functions(reward_fn).items()
        }
        self.rewards = Rewards(functions, reward_weights, success)
        if columns is not None:
            named = {name: self.source.columns[name] for name in columns if name != TOOLS}
            require_taken(named, [*functions.values(), *([success] if callable(success) else [])])
        size = self.vocabulary.size
        self.action_space = ResponseSpace(size, max_new_tokens, self.vocabulary.ends, self.vocabulary.pad)
        self.observation_space = prompt_space(size, self.source.length)
        self.scoring_seconds = 0.0  # that the reward functions took since ``take_scoring_seconds``
        self.reward_sums: dict[str, list[float]] = {}  # by function: the sum of its scores, and how many they are

    def with_prompts(
        self, prompts: Any, columns: Mapping[str, Iterable[Any]] | None = None, **changes: Any
    ) -> PromptTask:
        """The same task with other prompts, as long as this one's at most: its observations have the same shape.

        ``changes`` are arguments that differ from this task's.
        """
        arguments = {**self.arguments, "max_prompt_length": self.source.length, **changes}
        return PromptTask(prompts, columns=columns, **arguments)

    def observe(self, rows: np.ndarray) -> Observation:
        """The prompts of these rows as ids and mask, [N, P] each."""
        return {INPUT_IDS: self.source.ids[rows], ATTENTION_MASK: self.source.mask[rows]}

    def scored(self, rows: np.ndarray, responses: np.ndarray) -> Scored:
        """The responses [N, L] to the prompts of ``rows``, as text, with their scores."""
        masks = self.action_space.mask_of(responses)
        prompts = [self.source.texts[row] for row in rows]
        texts = [self.vocabulary.text_of(response[mask]) for response, mask in zip(responses, masks, strict=True)]
        cut_off = self.action_space.cut_off(responses, masks)
        columns = {name: [column[row] for row in rows] for name, column in self.source.columns.items()}
        columns = {CUT_OFF: cut_off.tolist(), **columns}
        started = time.perf_counter()
        scores = self.rewards(prompts, texts, columns)
        success = self.rewards.successes(scores, prompts, texts, columns)
        self.scoring_seconds += time.perf_counter() - started
        return Scored(prompts, texts, masks.sum(-1), cut_off, scores, success)

    def score(self, rows: np.ndarray, responses: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Scores [N] of the responses [N, L] to the prompts of ``rows``, and the info of each response."""
        scored = self.scored(rows, responses)
        several = scored.scores.each if len(scored.scores.each) > 1 else {}
        for name, values in several.items():
            total, count = self.reward_sums.get(name, (0.0, 0.0))
            self.reward_sums[name] = [total + float(np.nansum(values)), count + float(np.isfinite(values).sum())]
        infos: list[dict[str, Any]] = []
        for row, (prompt, text) in enumerate(zip(scored.prompts, scored.texts, strict=True)):
            episode = {"r": float(scored.scores.total[row]), "l": int(scored.lengths[row])}
            info = {"prompt": prompt, "response": text, "cut_off": bool(scored.cut_off[row]), "episode": episode}
            if several:
                info["scores"] = {name: _or_none(values[row]) for name, values in several.items()}
            if scored.success is not None:
                info["is_success"] = bool(scored.success[row])  # Stable-Baselines3 logs its rate
            infos.append(info)
        return scored.scores.total, infos


def _or_none(score: float) -> float | None:
    return None if np.isnan(score) else float(score)


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

    def take_reward_sums(self) -> dict[str, list[float]]:
        """The sum and the number of scores since the last call, for each of several reward functions."""
        sums, self.task.reward_sums = self.task.reward_sums, {}
        return sums

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
        prompts: Any,
        reward_fn: RewardSource,
        tokenizer: Any = None,
        *,
        max_new_tokens: int,
        shuffle: bool = True,
        **options: Any,
    ) -> None:
        task = PromptTask(prompts, reward_fn, tokenizer, max_new_tokens=max_new_tokens, **options)
        self._begin(task, shuffle=shuffle)

    def _begin(self, task: PromptTask, *, shuffle: bool) -> None:
        self.task = task
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
