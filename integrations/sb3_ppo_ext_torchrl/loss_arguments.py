"""The arguments of ``PPOXLoss``, checked before anything is built: a wrong one raises with its remedy."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from sb3_ppo_ext.arguments import checked_dual_clip
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from sb3_ppo_ext.objective.registry import SURROGATES, VALUE_ERRORS, require_fitting
from sb3_ppo_ext.objective.terms import Objective
from sb3_ppo_ext.unknown_arguments import refuse_unknown
from sb3_ppo_ext_torchrl.coefficients import ADDED_COEFFICIENTS
from sb3_ppo_ext_torchrl.errors import UnknownChoice, WrongNumber, WrongShape
from sb3_ppo_ext_torchrl.host import ACCEPTED, REMOVED

# TorchRL's words for an unknown choice, and the known ones. Both may be assigned later; every call reads them.
TORCHRL_CHOICES: dict[str, tuple[str, Iterable[str]]] = {
    "reduction": ("Unknown reduction method", ("mean", "sum", "none")),
    "loss_critic_type": ("Unknown loss", VALUE_ERRORS),
}
VAR_KEYWORD = inspect.Parameter.VAR_KEYWORD
COEFFICIENTS = ("entropy_coeff", "critic_coeff", "clip_value", "max_importance_ratio")


def checked_options(options: Mapping[str, Any], critic: TensorDictModuleBase | None) -> dict[str, Any]:
    """ClipPPOLoss's own arguments, its numbers as floats: an int would become an int buffer, in which 0.3 is 0."""
    refuse_unknown("PPOXLoss", (name for name in options if name not in REMOVED), ACCEPTED)
    checked = dict(options)
    for name in COEFFICIENTS:
        if name in checked:
            checked[name] = as_float(name, checked[name])
    checked["clip_epsilon"] = _clip_epsilon(checked.get("clip_epsilon", 0.2))
    if checked.get("reduction") is not None:
        require_torchrl_choice("reduction", checked["reduction"])
    require_torchrl_choice("loss_critic_type", checked.get("loss_critic_type", "smooth_l1"))
    critic = checked.get("critic", critic)
    if critic is not None and checked.get("critic_coeff") != 0 and not any(True for _ in critic.parameters()):
        warnings.warn(
            f"the critic, a {type(critic).__name__}, has no parameters to train; "
            "pass the value operator itself, or critic_coeff=0",
            TrainingWarning,
            stacklevel=3,
        )
    return checked


def checked_objective(
    options: Mapping[str, Any],
    coefficients: Mapping[str, Any],
    *,
    surrogate: str,
    dual_clip: Any,
    kl_estimator: str,
    value_clip: str,
) -> Objective:
    """The choice among PPOX's losses."""
    objective = Objective(
        surrogate=surrogate,
        dual_clip=checked_dual_clip(dual_clip),
        penalized=coefficients["kl_coef"] is not None,
        splits_kl=coefficients["kl_coef_std"] is not None,
        kl_estimator=kl_estimator,
        value_clip=value_clip,
        normalize_advantage=False,  # done before, where TorchRL's own ways to do it are at hand
        value_error=options.get("loss_critic_type", "smooth_l1"),
    )
    optional = {"divergence_limit": coefficients["divergence_limit"]}
    require_fitting(surrogate, optional, kl_coef=coefficients["kl_coef"], penalized=objective.penalized)
    clip = options["clip_epsilon"]
    if isinstance(clip, tuple) and "clip_range_high" not in SURROGATES[surrogate].uses:
        users = SURROGATES.users_of("clip_range_high")
        raise ValueError(
            f'clip_epsilon={clip}: only surrogate={users} has an upper clip of its own, not "{surrogate}"; '
            "pass one number"
        )
    return objective


def checked_coefficients(added: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of the terms that PPOX adds, as floats; with ``kl_coef_std`` the mean's KL has a weight too, or 0."""
    weights = {name: as_float(name, value) for name, value in added.items()}
    if weights["kl_coef_std"] is not None and weights["kl_coef"] is None:
        weights["kl_coef"] = 0.0
    return weights


def as_float(name: str, value: Any) -> Any:
    """``value`` with its numbers as floats; None, a flag and a mapping by head stay what they are."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return {key: as_float(f"{name}[{key!r}]", number) for key, number in value.items()}
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.float()
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, (str, bytes)):  # of "0.1" Python makes a number, TorchRL does not
        wanted = "a Mapping[str, float]" if name == "entropy_coeff" else "a scalar tensor"
        raise WrongNumber(f"{name}={value!r}: a number is needed; {name} must be a float or {wanted}")
    if not math.isfinite(number):
        raise ValueError(f"{name}={value!r}: a finite number is needed")
    return number


def _clip_epsilon(value: Any) -> Any:
    if isinstance(value, (tuple, list)):  # TorchRL checks the values of a pair itself
        return tuple(as_float("clip_epsilon", number) for number in value)
    value = as_float("clip_epsilon", value)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise WrongShape(f"clip_epsilon={value!r}: a scalar tensor is needed, or a pair (low, high) of numbers")
    if value is None or isinstance(value, bool) or value < 0:
        raise ValueError(f"clip_epsilon={value!r}: a number of at least 0 is needed, or a pair (low, high)")
    return value


def require_torchrl_choice(name: str, value: Any) -> None:
    """``UnknownChoice`` for a ``reduction`` or ``loss_critic_type`` that TorchRL does not know."""
    complaint, allowed = TORCHRL_CHOICES[name]
    if value not in tuple(allowed):
        choices = ", ".join(map(repr, allowed))
        raise UnknownChoice(f"{complaint} {value}. {name}={value!r}: one of {choices} is needed")


def joined_signature(ours: Any) -> inspect.Signature:
    """For ``help`` and editors: the added coefficients and TorchRL's arguments in the place of ``**options``."""
    named = {name: entry for name, entry in inspect.signature(ours).parameters.items() if entry.kind is not VAR_KEYWORD}
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ADDED_COEFFICIENTS]
    hosts = [entry for name, entry in ACCEPTED.items() if name not in named]
    return inspect.Signature([*named.values(), *added, *hosts])
