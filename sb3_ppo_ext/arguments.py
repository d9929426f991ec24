"""PPOX's own arguments checked together: every mistake is a ``ValueError`` at construction, with its remedy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sb3_ppo_ext.knobs.schedules import endpoints, finite_number
from sb3_ppo_ext.policies.adapter import knows_distribution
from sb3_ppo_ext.policies.family import EagerOnly, SequencePolicy
from sb3_ppo_ext.rollout.minibatches import has_rows

if TYPE_CHECKING:
    from sb3_ppo_ext.ppox import PPOX

CHOICES = {
    "surrogate": ("clip", "spo", "none"),
    "kl_estimator": ("exact", "k1", "k2", "k3"),
    "value_clip": ("sb3", "max"),
    "advantage_scope": ("minibatch", "rollout"),
}


def check_arguments(model: PPOX) -> None:
    """What can be said before the networks exist."""
    for name, allowed in CHOICES.items():
        value = getattr(model, name)
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, allowed))} is needed")
    for name in ("recompute_advantage", "normalize_value", "compile"):
        value = getattr(model, name)
        if not (isinstance(value, bool) or (name == "compile" and value == "auto")):
            choice = 'True, False or "auto"' if name == "compile" else "True or False"
            raise ValueError(f"{name}={value!r}: {choice} is needed")
    _check_clipping(model)
    if issubclass(model.policy_class, EagerOnly) and model.compile is True:
        raise ValueError(f'compile=True: {model.policy_class.__name__} is not compiled; pass compile="auto" or False')
    if issubclass(model.policy_class, SequencePolicy):
        model.policy_class.check_algorithm(model)
    elif model.ref_kl_coef != 0:
        raise ValueError(
            f"ref_kl_coef={model.ref_kl_coef!r}: {model.policy_class.__name__} has no frozen reference policy; "
            "0 is needed (kl_coef penalises the distance to the previous policy)"
        )


def _check_clipping(model: PPOX) -> None:
    if model.clip_range_high is not None and model.surrogate != "clip":
        raise ValueError(
            f'clip_range_high={model.clip_range_high!r}: only surrogate="clip" has an upper clip of its own, '
            f'not "{model.surrogate}"; pass clip_range_high=None'
        )
    clips = endpoints(model.clip_range) if callable(model.clip_range) else (model.clip_range,)
    if model.surrogate == "spo" and min(clips, default=1.0) <= 0:
        raise ValueError(
            f'clip_range={model.clip_range!r}: surrogate="spo" divides by it; '
            'let it end above 0, as in "linear:0.2:0.02"'
        )
    if model.dual_clip is None:
        return
    if model.surrogate != "clip":
        raise ValueError(f'dual_clip={model.dual_clip!r}: only for surrogate="clip", not "{model.surrogate}"')
    try:
        model.dual_clip = finite_number("dual_clip", "c", _as_number(model.dual_clip))
    except ValueError:
        raise ValueError(f"dual_clip={model.dual_clip!r}: a number above 1, or None, is needed") from None
    if model.dual_clip <= 1:
        raise ValueError(f"dual_clip={model.dual_clip}: it must be above 1 (Ye et al. 2020 use 3), or None")


def _as_number(value: object) -> object:
    """Numbers written as text (YAML's 1e-4) are accepted."""
    return float(value) if isinstance(value, str) else value


def check_exact_kl(model: PPOX) -> None:
    """Whether those who need the exact KL can have it; called when policy and buffer exist."""
    consumers = [name for name, knob in model.knobs.controllers.items() if knob.measures == "kl"]
    if model.penalized and "kl_coef" not in consumers:
        consumers.append("kl_coef")
    if not consumers or model.kl_estimator != "exact":
        return
    if not knows_distribution(model.policy):
        reason = f"the action distribution of {type(model.policy).__name__} is not one of Stable-Baselines3's"
    elif not has_rows(type(model.rollout_buffer)):
        reason = f"{type(model.rollout_buffer).__name__} draws its minibatches by a method of its own"
    else:
        return
    raise ValueError(f'kl_estimator="exact" (needed by {", ".join(consumers)}): {reason}; pass kl_estimator="k3"')


def check_buffer(model: PPOX) -> None:
    """Recomputing advantages needs to know which row is which."""
    if model.recompute_advantage and not has_rows(type(model.rollout_buffer)):
        raise ValueError(
            f"recompute_advantage=True: {type(model.rollout_buffer).__name__} draws its minibatches by a method of "
            "its own; pass recompute_advantage=False"
        )


def check_learn(model: PPOX, total_timesteps: float) -> None:
    """What ``learn()`` needs before it changes anything."""
    if total_timesteps != total_timesteps:
        raise ValueError(
            f"total_timesteps={total_timesteps}: a number of steps is needed, or "
            'float("inf") where a callback ends the training'
        )
    if model.env is None:
        raise ValueError("learn(): the model has no environment; call set_env(env), or pass env=... to load()")


def joined_signature(host: Callable[..., Any], own: Callable[..., Any]) -> inspect.Signature:
    """The host's parameters followed by the keyword-only ones of ``own``, which passes the host's on unnamed."""
    keywords = [one for one in inspect.signature(own).parameters.values() if one.kind is one.KEYWORD_ONLY]
    taken = {one.name for one in keywords}
    return inspect.Signature(
        [*(one for name, one in inspect.signature(host).parameters.items() if name not in taken), *keywords]
    )
