"""The Optuna search space of language models; policy, adapter and rollout stay those of the settings file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import optuna

MARK = "token_surrogate"  # the name that only trials of language models have
SURROGATES = ("clip", "cispo")
CLIP_RATIOS = (1.0, 1.4)  # upper over lower clip range; 1.4 is DAPO's

# rl_zoo3's samplers do not get the settings; a trial runs in one thread.
_searching: ContextVar[bool] = ContextVar("searching a language model's settings", default=False)


@contextmanager
def search_for(policy: object) -> Iterator[None]:
    """Inside, trials are of a language model where ``policy`` is the class of one."""
    token = _searching.set(is_language_policy(policy))
    try:
        yield
    finally:
        _searching.reset(token)


def is_language_policy(policy: object) -> bool:
    """True for ``LanguageModelPolicy``, ``CandidatePolicy`` and their subclasses, without importing them."""
    return isinstance(policy, type) and any(cls.__module__.startswith("sb3_ppo_ext.language") for cls in policy.__mro__)


def searches_language_model() -> bool:
    """True in a trial of a language model."""
    return _searching.get()


def sample_language_params(trial: optuna.Trial, n_envs: int) -> dict[str, Any]:
    """The arguments of one trial; minibatches are at most the responses of a step of all environments."""
    largest = max(n_envs.bit_length() - 1, 0)
    trial.suggest_int("batch_size_log2", min(2, largest), min(6, largest))
    trial.suggest_categorical("n_epochs", [1, 2, 4])
    trial.suggest_float("learning_rate", 1e-6, 3e-3, log=True)  # the upper end is for adapters
    trial.suggest_categorical("learning_rate_falls", [False, True])
    trial.suggest_categorical(MARK, SURROGATES)
    trial.suggest_float("clip_range", 0.1, 0.4)
    trial.suggest_categorical("clip_ratio", CLIP_RATIOS)
    trial.suggest_float("gae_lambda", 0.9, 1.0)
    trial.suggest_float("vf_coef", 0.05, 1.0, log=True)
    trial.suggest_float("ref_kl_coef", 1e-4, 0.3, log=True)
    trial.suggest_categorical("max_grad_norm", [0.3, 1.0, 3.0])
    return convert_language_params(trial.params)


def convert_language_params(sampled: dict[str, Any]) -> dict[str, Any]:
    """Suggested names and values -> PPOX's arguments. A reward of language models is not discounted."""
    kwargs = {**sampled, "gamma": 1.0}
    kwargs["batch_size"] = 2 ** kwargs.pop("batch_size_log2")
    kwargs["surrogate"] = kwargs.pop(MARK)
    ratio, rate = kwargs.pop("clip_ratio"), kwargs["learning_rate"]
    kwargs["clip_range_high"] = kwargs["clip_range"] * ratio if ratio != 1.0 else None
    if kwargs.pop("learning_rate_falls"):
        kwargs["learning_rate"] = {"linear": {"start": rate, "end": 0.0}}
    return kwargs
