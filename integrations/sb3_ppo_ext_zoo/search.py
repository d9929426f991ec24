"""The Optuna search space: rl_zoo3's for PPO, and PPOX's own knobs.

Every name is suggested in every trial, also where another choice leaves it without effect (``kl_target`` without any
KL control): rl_zoo3's multivariate TPE models the names that all trials share, and samples others at random.
"""

from __future__ import annotations

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_onpolicy_params, sample_ppo_params

from sb3_ppo_ext.objective.registry import SURROGATES
from sb3_ppo_ext_zoo.language_search import (
    MARK,
    convert_language_params,
    sample_language_params,
    searches_language_model,
)

LEARNING_RATE_CONTROLS = ("constant", "linear", "cosine", "adaptive_kl")
CLIP_SCHEDULES = ("constant", "linear", "cosine")

# Upper over lower clip range. 1.4 is DAPO's 0.28 / 0.2 (Yu et al. 2025, "clip-higher").
CLIP_RATIOS = (1.0, 1.4, 2.0)


def sample_ppox_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """The constructor arguments of one trial; ``convert_ppox_params(trial.params)`` gives the same again."""
    if searches_language_model():
        return sample_language_params(trial, n_envs)
    sample_ppo_params(trial, n_actions, n_envs, additional_args)
    trial.suggest_categorical("surrogate", searched_surrogates())
    trial.suggest_categorical("clip_ratio", CLIP_RATIOS)
    trial.suggest_categorical("clip_schedule", CLIP_SCHEDULES)
    trial.suggest_categorical("dual_clip", [None, 3.0])
    trial.suggest_categorical("learning_rate_control", LEARNING_RATE_CONTROLS)
    trial.suggest_categorical("kl_penalty", [False, True])
    trial.suggest_float("kl_coef", 0.1, 10.0, log=True)
    trial.suggest_float("kl_target", 0.003, 0.05, log=True)
    trial.suggest_categorical("advantage_scope", ["minibatch", "rollout"])
    trial.suggest_categorical("recompute_advantage", [False, True])
    trial.suggest_categorical("normalize_value", [False, True])
    return convert_ppox_params(trial.params)


def convert_ppox_params(sampled: dict[str, Any]) -> dict[str, Any]:
    """Suggested names and values -> PPOX's arguments.

    Knobs come out in their dict form, as in ``ppox.yml``: a saved ``config.yml`` stays readable, and no controller
    object passes its memory from one trial to the next. All own arguments that are searched are named, so that a trial
    is not half of what the settings file says: ``clip_range_high`` there would contradict ``surrogate`` here.
    """
    if MARK in sampled:
        return convert_language_params(sampled)
    kwargs: dict[str, Any] = convert_onpolicy_params(sampled)
    clip, ratio = kwargs["clip_range"], kwargs.pop("clip_ratio")
    schedule, control = kwargs.pop("clip_schedule"), kwargs.pop("learning_rate_control")
    start, target, penalty = kwargs.pop("kl_coef"), kwargs.pop("kl_target"), kwargs.pop("kl_penalty")
    uses = SURROGATES[kwargs["surrogate"]].uses
    # The clip range ends above 0: spo divides by it, and a search may end within the last rollout.
    kwargs["clip_range"] = _scheduled(schedule, clip, clip / 10)
    high = clip * ratio
    kwargs["clip_range_high"] = (
        _scheduled(schedule, high, high / 10) if "clip_range_high" in uses and ratio != 1.0 else None
    )
    kwargs["dual_clip"] = kwargs["dual_clip"] if "dual_clip" in uses else None
    kwargs["learning_rate"] = _learning_rate(control, kwargs["learning_rate"], target)
    # Without a surrogate that limits the step the penalty must (PPO-penalty, Schulman et al. 2017, section 4).
    penalized = penalty or not uses & {"clip_range", "divergence_limit"}
    kwargs["kl_coef"] = {"adaptive_kl": {"start": start, "target": target}} if penalized else 0.0
    return kwargs


def searched_surrogates() -> list[str]:
    """Those that fit any action space; "gspo" is "clip" for single actions."""
    general = [name for name in SURROGATES if not (SURROGATES[name].needs_probabilities or SURROGATES[name].weighs_kl)]
    return [name for name in general if name != "gspo"]


def _scheduled(schedule: str, start: float, end: float) -> float | dict[str, Any]:
    return start if schedule == "constant" else {schedule: {"start": start, "end": end}}


def _learning_rate(control: str, start: float, target: float) -> float | dict[str, Any]:
    if control != "adaptive_kl":
        return _scheduled(control, start, 0.0)
    law = {"threshold": {"margin": 2.0, "factor": 1.5}}  # rsl_rl's rule, which moves at every minibatch
    return {"adaptive_kl": {"start": start, "target": target, "law": law, "every": "minibatch"}}
