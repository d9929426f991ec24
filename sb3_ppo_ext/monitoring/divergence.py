"""Numbers that are not finite, found where they first appear: which tensor, where, since when, and what to do.

A NaN stays in the parameters for good once a step has been taken on it, so these checks come before the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_ppo_ext.monitoring import remedies

Array = np.ndarray | torch.Tensor

# Searched in this order: a term of the loss is nearer to the cause than their sum, and that than its gradient.
REMEDIES = {
    "value_loss": remedies.VALUE_LOSS,
    "kl": remedies.KL,
    "policy_gradient_loss": remedies.KL,
    "loss": remedies.LOSS,
    "grad": remedies.GRADIENT,
    "": remedies.LOSS,
}

# What a step adds to the rollout, causes before effects.
COLLECTED = ("values", "log_probs", "actions", "rewards")


class DivergedError(ValueError):
    """Training met a number that is not finite; names the tensor, the place, the knobs and a remedy."""


@dataclass(frozen=True)
class Bad:
    """The first number of an array that is not finite, in row-major order."""

    index: tuple[int, ...]
    value: float
    count: int
    size: int

    def __str__(self) -> str:
        return f"{self.value} ({self.count} of {self.size} numbers are not finite)"


@dataclass(frozen=True)
class Suspect:
    """A tensor with a number that is not finite, where it is in words, and what to do about it."""

    name: str
    bad: Bad
    where: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name} {self.where} is {self.bad}. {self.remedy}"


def first_bad(array: Array) -> Bad | None:
    """The first NaN or infinity of a float array; None for whole numbers, which have none."""
    if isinstance(array, torch.Tensor):
        if not array.is_floating_point() or bool(torch.isfinite(array.detach().sum())):
            return None
        array = array.detach().to("cpu", torch.float32).numpy()
    elif not np.issubdtype(array.dtype, np.floating):
        return None
    with np.errstate(all="ignore"):
        # One pass without a temporary. A sum of finite numbers may overflow, hence the second pass.
        if np.isfinite(array.sum()):
            return None
    bad = ~np.isfinite(array)
    if not bad.any():
        return None
    index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), array.shape))
    return Bad(index, float(array[index]), int(bad.sum()), array.size)


def check_rollout(
    buffer: RolloutBuffer,
    *,
    iteration: int,
    knobs: Mapping[str, float],
    last_observation: Array | Mapping[str, Array] | None = None,
) -> None:
    """Raises :class:`DivergedError` if a rollout holds a number that is not finite.

    Of several tensors it names the one that went wrong at the earliest step. An observation counts only where the
    policy's output is not finite either: some policies take NaN for "not seen". ``last_observation`` is the one after
    the last step: its value is in every advantage.
    """
    if all(first_bad(getattr(buffer, name)) is None for name in (*COLLECTED, "advantages")):
        return
    collected = [*_bad_observations(buffer, tolerated=_policy_is_finite(buffer)), *_bad_outputs(buffer)]
    if collected:
        # min() keeps the first of equals, and within a step causes are listed before effects.
        suspect = min(collected, key=lambda suspect: suspect.bad.index[0])
    else:
        # Only the advantages, then: they alone depend on what came after the last step.
        after = [] if last_observation is None else _bad_last_observation(last_observation, "after the last step")
        suspect = next(iter([*after, *_in_rollout("advantages", _collected(buffer, "advantages"), remedies.ADVANTAGE)]))
    raise DivergedError(f"Rollout {iteration}: {suspect} {_knobs(knobs)}")


def check_update(
    values: Mapping[str, float],
    *,
    iteration: int,
    epoch: int,
    knobs: Mapping[str, float],
    buffer: RolloutBuffer | None = None,
) -> None:
    """Raises :class:`DivergedError` if a loss, a KL or a gradient norm of an update is not finite.

    ``values`` has the names of the scalars, with or without "train/". With the ``buffer``, observations that the
    policy took in without complaint (tanh of an infinity is 1, its derivative is not) are named as the likely cause.
    """
    bad = {name.removeprefix("train/"): value for name, value in values.items() if not math.isfinite(value)}
    if not bad:
        return
    what = ", ".join(f"{name} is {value}" for name, value in bad.items())
    observed = [] if buffer is None else list(_bad_observations(buffer, tolerated=None))
    remedy = (
        str(observed[0]) if observed else next(text for key, text in REMEDIES.items() if any(key in n for n in bad))
    )
    raise DivergedError(f"Rollout {iteration}, epoch {epoch}: {what}. {remedy} {_knobs(knobs)}")


def explain_policy_failure(
    error: Exception,
    observation: Array | Mapping[str, Array],
    policy: torch.nn.Module,
    *,
    iteration: int,
    knobs: Mapping[str, float],
) -> DivergedError | None:
    """The NaN behind the error that a distribution raised while actions were sampled; None where there is none.

    ``observation`` is the batch the policy was given: [N, ...], or a dict of them. Raise the result ``from error``.
    """
    state = [*policy.named_parameters(), *policy.named_buffers()]
    weights = [
        Suspect(f"the policy's {name}", bad, f"at {bad.index}", remedies.PARAMETER)
        for name, tensor in state
        if (bad := first_bad(tensor)) is not None
    ]
    suspects = [*_bad_last_observation(observation, "given to the policy"), *weights]
    if not suspects:
        return None
    reason = str(error).partition("\n")[0]
    return DivergedError(f"Rollout {iteration}: {suspects[0]} {_knobs(knobs)} (The policy stopped with: {reason})")


def _bad_observations(buffer: RolloutBuffer, *, tolerated: np.ndarray | None) -> Iterator[Suspect]:
    for name, array in _named("observations", _collected(buffer, "observations")):
        if tolerated is not None:
            array = np.where(tolerated.reshape(tolerated.shape + (1,) * (array.ndim - 2)), 0, array)
        yield from _in_rollout(name, array, remedies.ENVIRONMENT)


def _bad_outputs(buffer: RolloutBuffer) -> Iterator[Suspect]:
    for name in COLLECTED:
        yield from _in_rollout(
            name, _collected(buffer, name), remedies.REWARD if name == "rewards" else remedies.POLICY
        )


def _in_rollout(name: str, array: np.ndarray, remedy: str) -> Iterator[Suspect]:
    if (bad := first_bad(array)) is not None:
        step, env, *entry = bad.index
        yield Suspect(name, bad, f"at step {step}, env {env}" + _entry(entry), remedy)


def _bad_last_observation(observation: Array | Mapping[str, Array], when: str) -> Iterator[Suspect]:
    for name, array in _named("the observation", observation):
        if (bad := first_bad(array)) is not None:
            env, *entry = bad.index
            yield Suspect(name, bad, f"{when}, at env {env}" + _entry(entry), remedies.ENVIRONMENT)


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """``value`` under ``name``, or each entry of a Dict observation as ``name[key]``."""
    if isinstance(value, Mapping):
        yield from ((f"{name}[{key!r}]", entry) for key, entry in value.items())
    else:
        yield name, value


def _collected(buffer: RolloutBuffer, name: str) -> Any:
    """An array of the buffer (or a dict of them) as [T, N, ...] in numpy, also after ``get()`` has flattened it."""
    value = getattr(buffer, name)
    flattened = getattr(buffer, "generator_ready", False) and name != "rewards"  # SB3 leaves these alone

    def unflattened(array: Array) -> np.ndarray:
        plain = array.detach().cpu().float().numpy() if isinstance(array, torch.Tensor) else array
        if not flattened:
            return plain
        by_env = plain.reshape(buffer.n_envs, buffer.buffer_size, *plain.shape[1:])
        return np.asarray(by_env.swapaxes(0, 1))

    if isinstance(value, Mapping):
        return {key: unflattened(entry) for key, entry in value.items()}
    return unflattened(value)


def _policy_is_finite(buffer: RolloutBuffer) -> np.ndarray:
    """[T, N]: whether value and log-probability are finite."""
    both = (np.isfinite(_collected(buffer, name)) for name in ("values", "log_probs"))
    value, log_prob = (finite.reshape(*finite.shape[:2], -1).all(-1) for finite in both)
    return np.asarray(value & log_prob)


def _entry(index: list[int]) -> str:
    return f", entry {index if len(index) > 1 else index[0]}" if index else ""


def _knobs(knobs: Mapping[str, float]) -> str:
    return "Knobs: " + ", ".join(f"{name}={value:.4g}" for name, value in knobs.items()) + "."
