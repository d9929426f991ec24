"""Responses to held-out prompts, greedy and sampled, and what they measure; nothing of training is touched."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from sb3_ppo_ext.language.envs.prompt_env import PromptTask
from sb3_ppo_ext.language.evaluation.estimators import best_of_k, majority_of_k, pass_at_k
from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy
from sb3_ppo_ext.language.policies.sampling import sample
from sb3_ppo_ext.saving import random_state, restore_random_state

AnswerOf = Callable[[Any], Hashable | None]


class Responses(NamedTuple):
    """n responses to each of P prompts."""

    texts: list[list[Any]]  # [P][n]
    answers: list[list[Hashable | None]]  # [P][n], what is compared for a majority
    score: np.ndarray  # [P, n]
    success: np.ndarray | None  # [P, n]; None where the task has no rule of success
    length: np.ndarray  # [P, n], in tokens
    cut_off: np.ndarray  # [P, n]


class Evaluation(NamedTuple):
    """The likeliest response to each prompt, and n that were sampled."""

    greedy: Responses
    sampled: Responses | None  # None for n = 0


@contextmanager
def undisturbed(policy: LanguageModelPolicy, seed: int, temperature: float | None) -> Iterator[None]:
    """Random numbers from ``seed`` and sampling at ``temperature`` inside; afterwards all is as it was before."""
    before, trained_at = random_state(0), policy.lm.temperature
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        policy.lm.temperature = trained_at if temperature is None else temperature
        yield
    finally:
        policy.lm.temperature = trained_at
        restore_random_state(before)


def evaluate(
    policy: LanguageModelPolicy,
    task: PromptTask,
    *,
    n: int,
    batch_size: int,
    answer_of: AnswerOf,
) -> Evaluation:
    """The greedy response and n samples for every prompt of the task, scored."""
    greedy = _responses(policy, task, 1, batch_size, answer_of, deterministic=True)
    sampled = _responses(policy, task, n, batch_size, answer_of, deterministic=False) if n else None
    return Evaluation(greedy, sampled)


def _responses(
    policy: LanguageModelPolicy, task: PromptTask, n: int, batch_size: int, answer_of: AnswerOf, *, deterministic: bool
) -> Responses:
    rows = np.arange(len(task.source.ids)).repeat(n)
    batches = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        batches.append(task.scored(some, sample(policy, task, some, deterministic=deterministic)))
    texts = [text for batch in batches for text in batch.texts]

    def table(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays).reshape(-1, n)

    successes = [batch.success for batch in batches if batch.success is not None]
    by_prompt = [texts[start : start + n] for start in range(0, len(texts), n)]
    return Responses(
        by_prompt,
        [[answer_of(text) for text in of_prompt] for of_prompt in by_prompt],
        table([batch.scores.total for batch in batches]),
        table(successes) if successes else None,
        table([batch.lengths for batch in batches]),
        table([batch.cut_off for batch in batches]),
    )


def whole_text(response: Any) -> Hashable | None:
    """The answer that a response is without further rule: its text without space around it, or its ids."""
    return (response.strip() or None) if isinstance(response, str) else tuple(response)


def measures(evaluation: Evaluation, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Name -> one number per prompt [P], of which the mean is reported.

    ``score`` and ``success_rate`` are those of the greedy responses; ``sampled_score``, ``pass@k``, ``maj@k`` and
    ``best@k``, the expected best score of k, those of the samples.
    """
    greedy, sampled = evaluation
    found = {"score": greedy.score[:, 0].astype(float)}
    if greedy.success is not None:
        found["success_rate"] = greedy.success[:, 0].astype(float)
    if sampled is None:
        return found
    found["sampled_score"] = sampled.score.mean(axis=1)
    for k in ks:
        if sampled.success is not None:
            found[f"pass@{k}"] = pass_at_k(sampled.success, k)
        if k > 1:
            found[f"best@{k}"] = best_of_k(sampled.score, k)
            if sampled.success is not None:
                found[f"maj@{k}"] = majority_of_k(sampled.answers, sampled.success, k)
    return found


def descriptions(evaluation: Evaluation) -> dict[str, float]:
    """Length in tokens, the rate of responses that end by themselves, and of the samples the distinct answers."""
    responses = evaluation.sampled or evaluation.greedy
    found = {
        "response_length": float(responses.length.mean()),
        "eos_rate": 1.0 - float(responses.cut_off.mean()),
    }
    if evaluation.sampled is not None:
        found["distinct_answers"] = float(np.mean([len(set(each)) for each in evaluation.sampled.answers]))
    return found
