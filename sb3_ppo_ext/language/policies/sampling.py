"""Responses of a language model to the prompts of a task, outside of training; the best of several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sb3_ppo_ext.language.envs.prompt_env import PromptTask, RewardSource
from sb3_ppo_ext.language.envs.spaces import ResponseSpace
from sb3_ppo_ext.language.inputs import at_least
from sb3_ppo_ext.language.model.generation import Response


class Sampler(Protocol):
    """A ``LanguageModelPolicy``, in the parts that sampling takes."""

    responses: ResponseSpace

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""

    def generate(self, observation: Any, *, deterministic: bool = False) -> Response:
        """Responses to a batch of prompts."""

    def __call__(self, obs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Responses, values and log-probabilities, all [B, L]."""


class BestOfN(NamedTuple):
    """The best of n responses to each of P prompts."""

    responses: list[Any]  # [P]
    scores: np.ndarray  # [P]
    all_responses: list[list[Any]]  # [P][n]
    all_scores: np.ndarray  # [P, n]
    kl: float  # nats: what the KL of best-of-n to the policy does not exceed


def prompts_on(policy: Sampler, task: PromptTask, rows: np.ndarray) -> dict[str, Tensor]:
    """The prompts of these rows on the policy's device."""
    return {name: torch.as_tensor(array, device=policy.device) for name, array in task.observe(rows).items()}


def sample(policy: Sampler, task: PromptTask, rows: np.ndarray, *, deterministic: bool = False) -> np.ndarray:
    """A response [N, L] to each of the prompts of ``rows`` [N]."""
    return np.asarray(policy.generate(prompts_on(policy, task, rows), deterministic=deterministic).token.cpu())


def best_of_n(
    policy: Sampler,
    prompts: Any,
    n: int,
    scorer: RewardSource | None = None,
    *,
    tokenizer: Any = None,
    columns: Mapping[str, Iterable[Any]] | None = None,
    batch_size: int = 64,
    **options: Any,
) -> BestOfN:
    """Draws n responses to each prompt and takes the one with the highest score; of equals the first.

    ``scorer`` is what ``reward_fn`` is to an environment. None takes the policy's own value of the last token, the
    critic's guess before the response ended. ``options`` are those of ``PromptVecEnv``.
    """
    n, batch_size = at_least(1, "n", n), at_least(1, "batch_size", batch_size)
    space = policy.responses
    options = {"vocab_size": space.vocab_size, "eos_token_id": list(space.eos_token_ids), **options}
    options = {"pad_token_id": space.pad_token_id, "max_new_tokens": space.max_new_tokens, **options}
    task = PromptTask(prompts, _no_score if scorer is None else scorer, tokenizer, columns=columns, **options)
    rows = np.arange(len(task.source.ids)).repeat(n)
    texts: list[Any] = []
    scores: list[np.ndarray] = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        if scorer is None:
            response, value = sample_with_value(policy, task, some)
            texts += task.scored(some, response).texts
            scores.append(value)
        else:
            scored = task.scored(some, sample(policy, task, some))
            texts += scored.texts
            scores.append(scored.scores.total)
    table = np.concatenate(scores).reshape(-1, n)
    each = [texts[start : start + n] for start in range(0, len(texts), n)]
    best = table.argmax(axis=1)
    chosen = [responses[index] for responses, index in zip(each, best, strict=True)]
    return BestOfN(chosen, table.max(axis=1), each, table, best_of_n_kl(n))


def _no_score(prompts: list[Any], responses: list[Any]) -> list[float]:
    return [0.0] * len(responses)


@torch.no_grad()
def sample_with_value(policy: Sampler, task: PromptTask, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A response [N, L] to each prompt of ``rows`` [N], and the policy's value [N] before its last token."""
    token, value, _ = policy(prompts_on(policy, task, rows))
    response = np.asarray(token.cpu())
    last = policy.responses.mask_of(response).sum(axis=-1) - 1
    return response, np.asarray(value.float().cpu())[np.arange(len(rows)), last]


def best_of_n_kl(n: int) -> float:
    """ln n - (n - 1) / n nats: what the KL of best-of-n to its policy does not exceed (Beirami et al. 2024).

    A policy trained to that KL should score higher than best-of-n does; else training has bought nothing.
    """
    return math.log(n) - (n - 1) / n
