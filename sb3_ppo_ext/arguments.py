"""PPOX's own arguments checked together: every mistake is a ``ValueError`` at construction, with its remedy.

Arguments are read as the attributes of ``model`` that Stable-Baselines3 makes of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from gymnasium import spaces

from sb3_ppo_ext.distributed.shards import Shards
from sb3_ppo_ext.knobs.parsing import number_in
from sb3_ppo_ext.knobs.schedules import endpoints
from sb3_ppo_ext.knobs.table import ADDED, KNOBS, is_on
from sb3_ppo_ext.objective.registry import SURROGATES, require_fitting
from sb3_ppo_ext.objective.terms import Objective
from sb3_ppo_ext.policies.adapter import has_known_kl, has_mean_and_deviation
from sb3_ppo_ext.rollout.minibatches import indexable
from sb3_ppo_ext.rollout.token_buffer import TokenRolloutBuffer
from sb3_ppo_ext.unknown_arguments import require_choice

KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY

CHOICES: dict[str, tuple[object, ...]] = {
    "advantage_scope": ("minibatch", "rollout"),
    "recompute_advantage": (True, False),
    "normalize_value": (True, False),
    "compile": (True, False, "auto"),
    "vec_normalize_sync": ("rollout", "step"),
}


def check_arguments(model: Any) -> None:
    """The checks that need no networks."""
    for name, allowed in CHOICES.items():
        require_choice(name, getattr(model, name), allowed)
    _check_policy(model.policy_class)
    _check_objective(model)


def _check_policy(policy_class: type) -> None:
    """``ValueError`` for a policy of another algorithm, which a file saved by that algorithm names too."""
    parameters = inspect.signature(policy_class).parameters
    if "use_sde" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise ValueError(
            f"{policy_class.__module__}.{policy_class.__name__} is not an actor-critic policy of PPO (its constructor "
            "takes no use_sde): build the model with a policy for PPO, and load only files of PPO or PPOX"
        )


def check_compilable(model: Any, compilable: bool) -> None:
    """``ValueError`` where ``compile=True`` and the policy is of a kind that is not compiled."""
    if model.compile is True and not compilable:
        raise ValueError(f'compile=True: {model.policy_class.__name__} is not compiled; pass compile="auto" or False')


def _check_objective(model: Any) -> None:
    surrogate = SURROGATES[model.surrogate]
    optional = {name: getattr(model, name) for name in ("clip_range_high", "divergence_limit")}
    require_fitting(model.surrogate, optional, kl_coef=model.kl_coef, penalized=is_on(model.kl_coef))
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
    model.dual_clip = checked_dual_clip(model.dual_clip)
    model.value_lambda = _checked_lambda(model.value_lambda)
    Objective(
        surrogate=model.surrogate,
        dual_clip=model.dual_clip,
        splits_kl=model.kl_coef_std is not None,
        kl_estimator=model.kl_estimator,
        value_clip=model.value_clip,
        value_error=model.value_error,
    )


def checked_dual_clip(value: object) -> float | None:
    """``dual_clip`` as a number above 1, or None; numbers written as text, such as YAML's 3e0, are accepted."""
    number = None if value is None else number_in(value)
    if value is not None and (number is None or number <= 1):
        raise ValueError(f"dual_clip={value!r}: a number above 1 (Ye et al. 2020 use 3), or None, is needed")
    return number


def _checked_lambda(value: object) -> float | None:
    number = None if value is None else number_in(value)
    if value is not None and (number is None or not 0 <= number <= 1):
        raise ValueError(f"value_lambda={value!r}: a number from 0 to 1, or None (that of gae_lambda), is needed")
    return number


def check_exact_kl(model: Any) -> None:
    """``ValueError`` where the exact KL is needed and cannot be computed; called when policy and buffer exist."""
    consumers = [name for name, knob in model.knobs.controllers.items() if knob.measures == "kl"]
    weights = {"kl_coef": model.knobs.is_on("kl_coef"), "kl_coef_std": model.kl_coef_std is not None}
    consumers += [name for name, weighs in weights.items() if weighs and name not in consumers]
    if weights["kl_coef_std"] and not has_mean_and_deviation(model.policy):
        raise ValueError(
            f"kl_coef_std={model.kl_coef_std!r}: actions of a {type(model.action_space).__name__} have no mean and "
            "deviation of a Gaussian to weigh apart; pass None"
        )
    measured = SURROGATES[model.surrogate].measures_kl
    if not measured and (not consumers or model.kl_estimator != "exact"):
        return
    if not has_known_kl(model.policy):
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
    """``ValueError`` where advantages or targets are computed again and a minibatch's rows cannot be identified."""
    off = {"recompute_advantage": False, "value_lambda": None}
    for name, default in off.items():
        if getattr(model, name) is not default and not indexable(type(model.rollout_buffer)):
            raise ValueError(
                f"{name}={getattr(model, name)}: {type(model.rollout_buffer).__name__} draws its minibatches by a "
                f"method of its own; pass {name}={default}"
            )


def check_shard_count(model: Any) -> None:
    """``ValueError`` for a number of shards that is none, or below that of the processes."""
    shards, processes = model.shards, model._processes.count
    if shards is not None and (isinstance(shards, bool) or not isinstance(shards, int) or shards < 1):
        raise ValueError(f"shards={shards!r}: a whole number of at least 1 is needed, or None")
    if shards is not None and shards < processes:
        raise ValueError(
            f"shards={shards}: {processes} processes need a shard each. Start {shards} or fewer processes, or pass "
            f"shards={processes}, with which the run has other numbers"
        )


def check_shards(model: Any, shards: Shards) -> None:
    """``ValueError`` where minibatches or environments cannot be divided into shards of equal size."""
    own, n_envs = len(shards.own), model.n_envs
    if model.batch_size % shards.count:
        raise ValueError(
            f"batch_size={model.batch_size}: each of the {shards.count} shards has the same part of every minibatch; "
            f"{model.batch_size // shards.count * shards.count or shards.count} can be divided by {shards.count}"
        )
    if n_envs % own:
        raise ValueError(
            f"the environment has n_envs={n_envs}, which cannot be divided among the {own} of {shards.count} shards "
            f"that this process trains; {max(n_envs // own, 1) * own} can be"
        )
    model._family.check_shards(model, shards)


def check_divisible(model: Any) -> None:
    """``ValueError`` where what is to be divided into shards goes through a method of the user's; it has a buffer."""
    if model._shards is None or isinstance(model.rollout_buffer, TokenRolloutBuffer):
        return
    if not indexable(type(model.rollout_buffer)):
        raise ValueError(
            f"shards={model.shards}: {type(model.rollout_buffer).__name__} draws its minibatches by a method of its "
            "own, and each shard has an order of rows; pass shards=None and train in one process"
        )


def refuse_own_collection(model: Any) -> None:
    """``ValueError`` where a ``collect_rollouts`` of the user's would act by one stream for all shards."""
    if model._shards is not None:
        raise ValueError(
            f"shards={model.shards}: {type(model).__name__}'s base class collects rollouts by a method of its own, "
            "which knows no shards; pass shards=None and train in one process"
        )


def check_learn(model: Any, total_timesteps: float | None) -> None:
    """``ValueError`` for a ``learn()`` that cannot begin; nothing is changed."""
    if total_timesteps is None or total_timesteps != total_timesteps:
        raise ValueError(
            f"total_timesteps={total_timesteps}: a number of steps is needed, or "
            'float("inf") where a callback ends the training'
        )
    if model.env is None:
        raise ValueError("learn(): the model has no environment; call set_env(env), or pass env=... to load()")


def joined_signature(host: Callable[..., Any], ours: Callable[..., Any]) -> inspect.Signature:
    """The host's parameters, the knobs that PPOX adds, and the keyword-only parameters of ``ours``.

    ``ours`` takes the knobs and passes the host's parameters on unnamed.
    """
    knobs = [inspect.Parameter(name, KEYWORD_ONLY, default=value) for name, value in ADDED.items()]
    keywords = {name: entry for name, entry in inspect.signature(ours).parameters.items() if entry.kind is KEYWORD_ONLY}
    hosts = [entry for name, entry in inspect.signature(host).parameters.items() if name not in keywords]
    return inspect.Signature([*hosts, *knobs, *keywords.values()])


def with_knobs(documentation: str | None) -> str | None:
    """The class documentation with a line for each knob that PPOX adds, before those of its other arguments."""
    if documentation is None:  # Python strips it under -OO
        return None
    lines = "".join(f":param {name}: {KNOBS[name].meaning}\n" for name in ADDED)
    start, parameters, rest = inspect.cleandoc(documentation).partition(":param ")
    return f"{start}{lines}{parameters}{rest}"
