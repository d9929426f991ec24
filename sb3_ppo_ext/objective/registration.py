"""Decorators that register an objective under a name, PPOX's own and a user's alike.

A registered function is a pure function of tensors [B], or [B, L] with a mask for tokens. Under its name it works
wherever an objective is named: in ``PPOX``, a YAML file and ``PPOXLoss``, eager and traced into a graph. Knobs are
passed as numbers or as 0-d tensors, so it must not branch on their values. ``mask`` is None or the weight of each slot;
where it is False or 0, the tensors hold 0. ``reduce(tensor, mask)`` makes one number of one number per slot::

    @surrogate("rollback")  # Wang et al. 2019, "Truly Proximal Policy Optimization"
    def rollback(log_ratio, advantage, *, low, high, mask, reduce, slope=0.3):
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - low, 1 + high)
        pulled_back = clipped - slope * (ratio - clipped)
        return -reduce(torch.min(ratio * advantage, pulled_back * advantage), mask)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from sb3_ppo_ext.objective.registry import (
    KL_ESTIMATORS,
    OF_SAMPLES,
    SURROGATES,
    VALUE_CLIPS,
    VALUE_ERRORS,
    ErrorOfValue,
    Registered,
    Surrogate,
    place_of,
)

Function = TypeVar("Function", bound=Callable[..., Tensor])


def surrogate(name: str, *, replace: bool = False, **flags: bool) -> Callable[[Function], Function]:
    """Registers ``function(log_ratio, advantage, *, ..., mask, reduce)``, a policy loss to be minimised.

    Among the further parameters may be any knob (None where it is switched off), ``dual_clip``, ``low`` and ``high``,
    the two sides of the clip range in force, ``action_log_prob`` [B] or [B, L] of the policy that acted, and ``kl``
    [B], the exact KL(old || new) of each state in nats; PPOX finds by them the arguments that go with this surrogate. A
    parameter of another name keeps its default. ``flags`` are those of ``Surrogate``.
    """
    _require_name(SURROGATES.argument, name)

    def register(function: Function) -> Function:
        entry = Surrogate(name, function, **flags)
        _require_parameters(SURROGATES.argument, entry, 2, "mask", "reduce")
        needed = {name: 0.2 for name, required in entry.inputs.items() if required and name not in OF_SAMPLES}
        _require_mask(SURROGATES.argument, entry, 2, needed)
        SURROGATES.add(entry, replace=replace)
        return function

    return register


def kl_estimator(name: str, *, replace: bool = False) -> Callable[[Function], Function]:
    """Registers ``function(log_ratio, mask, reduce)``: KL(old || new) in nats per action."""
    _require_name(KL_ESTIMATORS.argument, name)

    def register(function: Function) -> Function:
        entry = Registered(name, function)
        _require_parameters(KL_ESTIMATORS.argument, entry, 1, "mask", "reduce")
        _require_mask(KL_ESTIMATORS.argument, entry, 1, {})
        KL_ESTIMATORS.add(entry, replace=replace)
        return function

    return register


def value_error(name: str, *, replace: bool = False) -> Callable[[Function], Function]:
    """Registers ``function(value, target)``, one number >= 0 per slot, or a loss of torch, which takes a reduction."""
    _require_name(VALUE_ERRORS.argument, name)

    def register(function: Function) -> Function:
        entry = ErrorOfValue(name, function)
        _require_parameters(VALUE_ERRORS.argument, entry, 2)
        errors = entry(torch.zeros(2, 3), torch.ones(2, 3))
        if not isinstance(errors, Tensor) or errors.shape != (2, 3):
            raise ValueError(f"{_named('value_error', entry)} does not return one number per slot; leave out its mean")
        VALUE_ERRORS.add(entry, replace=replace)
        return function

    return register


def value_clip(name: str, *, replace: bool = False) -> Callable[[Function], Function]:
    """Registers ``function(value, target, old_value, *, clip, mask, error, reduce)``; ``error`` names a value error."""
    _require_name(VALUE_CLIPS.argument, name)

    def register(function: Function) -> Function:
        entry = Registered(name, function)
        _require_parameters(VALUE_CLIPS.argument, entry, 3, "clip", "mask", "error", "reduce")
        VALUE_CLIPS.add(entry, replace=replace)
        return function

    return register


def _require_name(kind: str, name: object) -> None:
    """``ValueError`` unless ``name`` is a text; it is the function itself where the parentheses are forgotten."""
    if not isinstance(name, str) or not name:
        raise ValueError(f'{kind}({name!r}): the name comes first, as in @{kind}("mine")')


def _require_parameters(kind: str, entry: Registered, tensors: int, *names: str) -> None:
    """``ValueError`` unless the function takes so many tensors by position, and the parameters of these names."""
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = list(entry.parameters.values())[:tensors]
    if [parameter.kind in by_position for parameter in first] != [True] * tensors:
        raise ValueError(f"{_named(kind, entry)} takes too few tensors by position; {tensors} come first")
    if missing := [name for name in names if name not in entry.parameters]:
        raise ValueError(
            f"{_named(kind, entry)} has no parameter {' and no parameter '.join(map(repr, missing))}; end it with "
            '"return reduce(..., mask)" of one number per slot'
        )


def _require_mask(kind: str, entry: Registered, tensors: int, knobs: dict[str, float]) -> None:
    """``ValueError`` if a slot of padding changes the result: padding would then be trained on."""
    slots = torch.tensor([[0.1, -0.2, 0.0], [0.3, 0.2, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    results = []
    for width in (2, 3):
        of_slots = [slots[:, :width] * scale for scale in (1.0, 2.0)[:tensors]]
        of_samples = {name: slots[:, :width] - 1.0 for name in OF_SAMPLES if name in entry.parameters}
        try:
            results.append(entry(*of_slots, **knobs, **of_samples, mask=mask[:, :width], reduce=_mean))
        except Exception as error:  # of the user's own code
            text = f"{type(error).__name__}: {error}"
            raise ValueError(f"{_named(kind, entry)} fails on tensors [2, {width}] and a mask ({text})") from error
    scalars = all(isinstance(result, Tensor) and result.shape == () for result in results)
    if not scalars or not torch.allclose(results[0], results[1]):
        raise ValueError(
            f"{_named(kind, entry)} counts slots that the mask excludes, or does not return one number; end it with "
            '"return reduce(..., mask)" of one number per slot'
        )


def _mean(tensor: Tensor, mask: Tensor) -> Tensor:
    return (tensor * mask).sum() / mask.sum()


def _named(kind: str, entry: Registered) -> str:
    return f"{kind} {entry.name!r} ({place_of(entry.function)})"
