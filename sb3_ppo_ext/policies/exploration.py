"""gSDE's exploration matrices: an attribute of the policy's distribution, drawn for a rollout or a part of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import Tensor


@contextmanager
def exploration_replaced(policy: Any, matrices: Mapping[str, Tensor]) -> Iterator[None]:
    """Replaces gSDE's exploration matrices, which are no buffers of the policy, until the end of the block."""
    if not matrices:
        yield
        return
    distribution = policy.action_dist
    before = {name: getattr(distribution, name) for name in matrices}
    try:
        for name, matrix in matrices.items():
            setattr(distribution, name, matrix)
        yield
    finally:
        for name, matrix in before.items():
            setattr(distribution, name, matrix)


def exploration_of(policy: Any) -> dict[str, Tensor]:
    """gSDE's exploration matrices: the one that all environments share, and those of each environment."""
    distribution = getattr(policy, "action_dist", None)
    if not isinstance(distribution, StateDependentNoiseDistribution):
        return {}
    return {name: getattr(distribution, name).detach() for name in ("exploration_mat", "exploration_matrices")}
