"""PPOX's own arguments checked together: every mistake is a ``ValueError`` at construction, with its remedy.

Arguments are read as the attributes of ``model`` that Stable-Baselines3 makes of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from gymnasium import spaces

from sb3_ppo_ext.knobs.schedules import endpoints, finite_number
from sb3_ppo_ext.knobs.table import ADDED, KNOBS, is_on
from sb3_ppo_ext.objective.registry import SURROGATES
from sb3_ppo_ext.objective.terms import Objective
from sb3_ppo_ext.policies.adapter import knows_distribution
from sb3_ppo_ext.rollout.minibatches import indexable

ADVANTAGE_SCOPES = ("minibatch", "rollout")


def check_arguments(model: Any) -> None:
    """What can be said before the networks exist."""
    if model.advantage_scope not in ADVANTAGE_SCOPES:
        allowed = " or ".join(map(repr, ADVANTAGE_SCOPES))
        raise ValueError(f"advantage_scope={model.advantage_scope!r}: {allowed} is needed")
    for name in ("recompute_advantage", "normalize_value", "compile"):
        value = getattr(model, name)
        if not (isinstance(value, bool) or (name == "compile" and value == "auto")):
            choice = 'True, False or "auto"' if name == "compile" else "True or False"
            raise ValueError(f"{name}={value!r}: {choice} is needed")
    _check_objective(model)


def check_compilable(model: Any, compilable: bool) -> None:
    """Whether what is asked of the compiler can be had from this kind of policy."""
    if model.compile is True and not compilable:
        raise ValueError(f'compile=True: {model.policy_class.__name__} is not compiled; pass compile="auto" or False')


def _check_objective(model: Any) -> None:
    surrogate = SURROGATES[model.surrogate]
    for name in ("clip_range_high", "divergence_limit"):
        if getattr(model, name) is not None and name not in surrogate.uses:
            raise ValueError(
                f"{name}={getattr(model, name)!r}: only surrogate={SURROGATES.users_of(name)} has a use for it, "
                f'not "{model.surrogate}"; pass {name}=None'
            )
    if surrogate.weighs_kl and not is_on(model.kl_coef):
        raise ValueError(
            f'kl_coef={model.kl_coef!r}: surrogate="{model.surrogate}" draws back by a penalty of this weight; '
            'pass one above 0, as in kl_coef={"adaptive_kl": {"start": 1.0, "target": 0.03, "law": "lagrangian"}}'
        )
    if surrogate.needs_probabilities and isinstance(model.action_space, spaces.Box):
        raise ValueError(
            f'surrogate="{model.surrogate}": actions of a {type(model.action_space).__name__} have densities, not '
            'probabilities; "dppo_kl" takes the exact KL of the distributions'
        )
    clips = endpoints(model.clip_range) if callable(model.clip_range) else (model.clip_range,)
    if surrogate.divides_by_clip_range and min(clips, default=1.0) <= 0:
        raise ValueError(
            f'clip_range={model.clip_range!r}: surrogate="{model.surrogate}" divides by it; '
            'let it end above 0, as in "linear:0.2:0.02"'
        )
    model.dual_clip = _checked_dual_clip(model.dual_clip)
    Objective(
        surrogate=model.surrogate,
        dual_clip=model.dual_clip,
        kl_estimator=model.kl_estimator,
        value_clip=model.value_clip,
        value_error=model.value_error,
    )


def _checked_dual_clip(value: object) -> float | None:
    if value is None:
        return None
    try:
        number = finite_number("dual_clip", "c", _as_number(value))
    except ValueError:
        raise ValueError(f"dual_clip={value!r}: a number above 1, or None, is needed") from None
    if number <= 1:
        raise ValueError(f"dual_clip={value}: it must be above 1 (Ye et al. 2020 use 3), or None")
    return number


def _as_number(value: object) -> object:
    """Numbers written as text (YAML's 1e-4) are accepted."""
    return float(value) if isinstance(value, str) else value


def check_exact_kl(model: Any) -> None:
    """Whether those who need the exact KL can have it; called when policy and buffer exist."""
    consumers = [name for name, knob in model.knobs.controllers.items() if knob.measures == "kl"]
    if model.knobs.is_on("kl_coef") and "kl_coef" not in consumers:
        consumers.append("kl_coef")
    measured = SURROGATES[model.surrogate].measures_kl
    if not measured and (not consumers or model.kl_estimator != "exact"):
        return
    if not knows_distribution(model.policy):
        reason = f"the action distribution of {type(model.policy).__name__} is not one of Stable-Baselines3's"
    elif not indexable(type(model.rollout_buffer)):
        reason = f"{type(model.rollout_buffer).__name__} draws its minibatches by a method of its own"
    else:
        return
    if measured:
        raise ValueError(
            f'surrogate="{model.surrogate}" takes the exact KL: {reason}; "dppo_binary_tv" and "dppo_binary_kl" take '
            "the probability of the action alone"
        )
    raise ValueError(f'kl_estimator="exact" (needed by {", ".join(consumers)}): {reason}; pass kl_estimator="k3"')


def check_buffer(model: Any) -> None:
    """Recomputing advantages needs to know which row is which."""
    if model.recompute_advantage and not indexable(type(model.rollout_buffer)):
        raise ValueError(
            f"recompute_advantage=True: {type(model.rollout_buffer).__name__} draws its minibatches by a method of "
            "its own; pass recompute_advantage=False"
        )


def check_learn(model: Any, total_timesteps: float | None) -> None:
    """What ``learn()`` needs before it changes anything."""
    if total_timesteps is None or total_timesteps != total_timesteps:
        raise ValueError(
            f"total_timesteps={total_timesteps}: a number of steps is needed, or "
            'float("inf") where a callback ends the training'
        )
    if model.env is None:
        raise ValueError("learn(): the model has no environment; call set_env(env), or pass env=... to load()")


def joined_signature(host: Callable[..., Any], own: Callable[..., Any]) -> inspect.Signature:
    """The host's parameters, the knobs that PPOX adds, and the keyword-only parameters of ``own``.

    ``own`` takes the knobs and passes the host's parameters on unnamed.
    """
    knobs = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in ADDED.items()]
    keywords = [one for one in inspect.signature(own).parameters.values() if one.kind is one.KEYWORD_ONLY]
    taken = {one.name for one in keywords}
    hosts = [one for name, one in inspect.signature(host).parameters.items() if name not in taken]
    return inspect.Signature([*hosts, *knobs, *keywords])


def with_knobs(documentation: str | None) -> str | None:
    """The class documentation with a line for each knob that PPOX adds, before those of its other arguments."""
    if documentation is None:  # Python strips it under -OO
        return None
    lines = "".join(f":param {name}: {KNOBS[name].meaning}\n" for name in ADDED)
    start, parameters, rest = inspect.cleandoc(documentation).partition(":param ")
    return f"{start}{lines}{parameters}{rest}"
