"""Reward functions of every kind as checked numbers: one, or several with weights; and what counts as success."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from sb3_ppo_ext.language.envs.failures import Failures
from sb3_ppo_ext.language.inputs import in_order, number_of

RewardFunction = Callable[..., Any]  # (prompts, responses, **columns) -> one number, or None, per response
Success = float | Mapping[str, float] | Callable[..., Any]
Columns = dict[str, list[Any]]

CUT_OFF = "cut_off"  # a column that every function may take: True where a response did not end by itself


class Scores(NamedTuple):
    """The scores of N responses."""

    total: np.ndarray  # [N] in float32, the weighted sum
    each: dict[str, np.ndarray]  # by function [N], before its weight; NaN where it does not apply


class Rewards:
    """Reward functions, their weights, and the rule of success."""

    def __init__(
        self,
        functions: Mapping[str, RewardFunction],
        weights: Sequence[float] | Mapping[str, float] | None = None,
        success: Success | None = None,
    ) -> None:
        self.functions = functions
        self.weights = weights_of(weights, list(functions))
        self.success = checked_success(success, functions)
        self.failures = Failures()
        self.worked: set[str] = set()  # the functions that have returned something

    def __call__(self, prompts: list[Any], responses: list[Any], columns: Columns) -> Scores:
        """The weighted sum; ``ValueError`` names the function and the response without a finite number.

        None from a function adds nothing to the sum: it does not apply to that response. One has to apply. A function
        that fails on some responses gives 0 for these, which ``failures`` counts.
        """
        several = len(self.functions) > 1
        each = {}
        for name, function in self.functions.items():
            what = f"reward_fn {name!r}" if several else "reward_fn"
            scorer = partial(self._call, function, what)
            each[name] = scores_of(scorer, what, prompts, responses, columns, may_be_none=several)
        table = np.stack([self.weights[name] * scores for name, scores in each.items()])
        if (without := np.isnan(table).all(axis=0)).any():
            row = int(without.argmax())
            raise ValueError(
                f"every function of reward_fn returned None for response {row}, {responses[row]!r} to the prompt "
                f"{prompts[row]!r}; at least one of them has to apply to it"
            )
        return Scores(np.nansum(table, axis=0).astype(np.float32), each)

    def _call(
        self, function: RewardFunction, what: str, prompts: list[Any], responses: list[Any], **columns: list[Any]
    ) -> Any:
        """What the function returns; where it fails, what it returns for each response alone, and 0 where that fails.

        A function that has never returned anything and fails on all of them raises its error: it is itself wrong.
        """
        accepted = accepted_columns(function, columns)
        try:
            returned = function(prompts, responses, **accepted)
        except Exception as error:  # whatever a user's parser makes of a response
            returned = self._scored_apart(function, what, prompts, responses, accepted)
            if returned is None:
                raise error
        self.worked.add(what)
        return returned

    def _scored_apart(
        self, function: RewardFunction, what: str, prompts: list[Any], responses: list[Any], columns: Columns
    ) -> list[Any] | None:
        scores: list[Any] = []
        errors: dict[int, Exception] = {}
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            try:
                returned = function([prompt], [response], **{name: [values[row]] for name, values in columns.items()})
                scores += in_order(returned) or [returned]
            except Exception as error:
                errors[row] = error
                scores.append(0.0)
        if len(errors) == len(responses) and what not in self.worked:
            return None
        for row, failure in errors.items():
            self.failures.add(what, failure, "the response scores 0", case=f" on the response {responses[row]!r:.80}")
        return scores

    def successes(
        self, scores: Scores, prompts: list[Any], responses: list[Any], columns: Columns
    ) -> np.ndarray | None:
        """True [N] for the responses that solve their prompts, judged before any penalty; None without a rule."""
        if self.success is None:
            return None
        if callable(self.success):
            return scores_of(self.success, "success", prompts, responses, columns) > 0
        if isinstance(self.success, Mapping):
            # NaN, a function that does not apply, demands nothing.
            missed = np.stack([scores.each[name] < least for name, least in self.success.items()])
            return np.asarray(~missed.any(axis=0))
        return np.asarray(scores.total >= self.success)


def scores_of(
    function: RewardFunction,
    what: str,
    prompts: list[Any],
    responses: list[Any],
    columns: Columns,
    *,
    may_be_none: bool = False,
) -> np.ndarray:
    """One finite score per response, as float64 [N], NaN for None; errors call the function ``what``."""
    returned = function(prompts, responses, **accepted_columns(function, columns))
    # From a GPU all at once.
    listed = in_order(returned.detach().cpu() if isinstance(returned, torch.Tensor) else returned)
    if listed is None or len(listed) != len(responses):
        found = f"a {type(returned).__name__}" if listed is None else f"{len(listed)} scores"
        raise ValueError(f"{what} returned {found} for {len(responses)} responses; one number for each is needed")
    scores = [math.nan if value is None and may_be_none else number_of(value) for value in listed]
    for row, score in enumerate(scores):
        if score is None or (not math.isfinite(score) and listed[row] is not None):
            raise ValueError(
                f"{what} returned {listed[row]!r} for response {row} of {len(responses)}, {responses[row]!r} to the "
                f"prompt {prompts[row]!r}; a finite number is needed"
            )
    return np.array(scores, np.float64)


def accepted_columns(function: RewardFunction, columns: Columns) -> Columns:
    """The columns that the function has parameters for; all of them where it takes any keyword."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return columns
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return columns
    return {parameter.name: columns[parameter.name] for parameter in parameters if parameter.name in columns}


def require_taken(columns: Columns, functions: Iterable[RewardFunction]) -> None:
    """``ValueError`` for a column that none of the functions has a parameter for."""
    taken = {name for function in functions for name in accepted_columns(function, columns)}
    if left := [name for name in columns if name not in taken]:
        raise ValueError(
            f"columns[{left[0]!r}]: no function of reward_fn has a parameter of that name, nor **columns; is it "
            "spelled as there?"
        )


def named_functions(functions: Any) -> dict[str, Any]:
    """Name -> function, of a mapping, of a list (each by its own name, numbered where two are the same), or of one."""
    if isinstance(functions, Mapping):
        named = dict(functions)
    else:
        named = {}
        for function in functions if isinstance(functions, (list, tuple)) else [functions]:
            name = getattr(function, "__name__", type(function).__name__)
            count = sum(earlier == name or earlier.startswith(f"{name}_") for earlier in named)
            named[f"{name}_{count + 1}" if name in named else name] = function
    if not named:
        raise ValueError("reward_fn is empty: at least one function is needed")
    return named


def weights_of(weights: Any, names: list[str]) -> dict[str, float]:
    """The weight of every function: 1, or those given in the functions' order or by their names."""
    if weights is None:
        return dict.fromkeys(names, 1.0)
    values = weights if isinstance(weights, Mapping) else dict(zip(names, in_order(weights) or [], strict=False))
    count = len(values) if isinstance(weights, Mapping) else len(in_order(weights) or [])
    numbers = {name: number_of(value) for name, value in values.items()}
    finite = all(number is not None and math.isfinite(number) for number in numbers.values())
    if set(numbers) != set(names) or count != len(names) or not finite:
        raise ValueError(
            f"reward_weights={weights!r}: a finite number for each of the functions {', '.join(map(repr, names))} is "
            "needed"
        )
    return {name: float(numbers[name] or 0.0) for name in names}


def checked_success(success: Any, functions: Mapping[str, Any]) -> Success | None:
    """The rule of success; ``ValueError`` for what is none."""
    if success is None:
        return None
    if callable(success):
        function: Callable[..., Any] = success
        return function
    if isinstance(success, Mapping):
        if unknown := [name for name in success if name not in functions]:
            raise ValueError(
                f"success={success!r} names {unknown[0]!r}; the functions of reward_fn are "
                f"{', '.join(map(repr, functions))}"
            )
        return {name: float(least) for name, least in success.items()}
    if (least := number_of(success)) is None:
        raise ValueError(
            f"success={success!r}: the least score that is a success is needed, or a mapping of it by reward function, "
            "or a function (prompts, responses, **columns) that returns True or False per response"
        )
    return least
