"""Whether the law ``Lagrangian`` holds the KL at its bound: two forms of the penalty on tasks of some seconds a run.

A controller of "minibatch" answers to the KL of every minibatch, so what it holds is the mean over all of them. Records
have that mean over the later half of a run's updates, as ``kl_held``.
"""

from __future__ import annotations

from typing import Any

from tests.benchmarks.learning.arm import Arm

BOUND = 0.02  # nats per action
TASKS = ("Pendulum-v1", "InvertedPendulum-v5")
ENVIRONMENT = {"n_envs": 4, "normalize": {"norm_obs": True, "norm_reward": True}}


def arm(surrogate: str, limit: float, **arguments: Any) -> Arm:
    """The penalty beside or within a surrogate, its multiplier by a law of this limit."""
    law = {"lagrangian": {"rate": 0.1, "limit": limit}}
    multiplier = {"adaptive_kl": {"start": 1.0, "target": BOUND, "law": law, "every": "minibatch"}}
    settings = {"n_steps": 512, "surrogate": surrogate, "kl_coef": multiplier, **arguments}
    return Arm(environment=ENVIRONMENT, arguments=settings, steps=100_000)


KL_BOUND = {
    "bound, soft, limit 4": arm("none", 4.0),
    "bound, soft, limit 1": arm("none", 1.0),
    "bound, hard, limit 4": arm("kl_bound", 4.0, divergence_limit=2 * BOUND),
}
