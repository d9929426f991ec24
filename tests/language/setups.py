"""Policies and models over tiny language models, as the tests of this folder need them."""

from __future__ import annotations

from typing import Any

from torch import nn

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv, ResponseSpace, prompt_space
from sb3_ppo_ext.language.model.critics import NoCritic
from tests.language import tiny

PROMPTS = [[3, 4], [5, 6, 7], [8], [9, 10, 11, 12]]
LENGTH = 6


def low_ids(prompts: list[list[int]], responses: list[list[int]]) -> list[float]:
    """One point for every token below 8."""
    return [float(sum(token < 8 for token in response)) for response in responses]


def env_of(reward_fn: Any, n_envs: int = 8, **options: Any) -> PromptVecEnv:
    settings: dict[str, Any] = {"max_new_tokens": LENGTH, "vocab_size": tiny.VOCABULARY, "eos_token_id": tiny.EOS}
    return PromptVecEnv(PROMPTS, reward_fn, n_envs=n_envs, **{**settings, "pad_token_id": tiny.PAD, **options})


def env(n_envs: int = 8, **options: Any) -> PromptVecEnv:
    return env_of(low_ids, n_envs, **options)


def policy(prompt: int = 6, response: int = 5, pad: int = tiny.PAD, **options: Any) -> LanguageModelPolicy:
    settings: dict[str, Any] = {"model": tiny.model, **options}
    return LanguageModelPolicy(
        prompt_space(tiny.VOCABULARY, prompt),
        ResponseSpace(tiny.VOCABULARY, response, tiny.EOS, pad),
        lambda _: 1e-3,
        **settings,
    )


def value_head(policy: LanguageModelPolicy) -> nn.Linear:
    assert not isinstance(policy.critic, NoCritic)
    return policy.critic.head


def ppox(
    *, environment: PromptVecEnv | None = None, policy_kwargs: dict[str, Any] | None = None, **options: Any
) -> PPOX:
    settings: dict[str, Any] = {
        **{
            "n_steps": 2,
            "batch_size": 4,
            "n_epochs": 2,
            "gamma": 1.0,
            "learning_rate": 1e-3,
            "seed": 0,
            "device": "cpu",
        },
        **options,
    }
    given = {"model": tiny.model, **(policy_kwargs or {})}
    return PPOX(LanguageModelPolicy, environment or env(), policy_kwargs=given, **settings)
