"""Whether the law ``Lagrangian`` holds the KL at its bound: two forms of the penalty on tasks of some seconds a run.

A controller of "minibatch" answers to the KL of every minibatch, so what it holds is the mean over all of them. Records
have that mean over the later half of a run's updates, as ``kl_held``.
"""

from __future__ import annotations

from tests.benchmarks.learning.arm import Arm

BOUND = 0.02  # nats per action
TASKS = ("Pendulum-v1", "InvertedPendulum-v5")
MULTIPLIER = {"adaptive_kl": {"start": 1.0, "target": BOUND, "law": "lagrangian", "every": "minibatch"}}
ENVIRONMENT = {"n_envs": 4, "normalize": {"norm_obs": True, "norm_reward": True}}

KL_BOUND = {
    "bound, soft": Arm(
        environment=ENVIRONMENT,
        arguments={"n_steps": 512, "surrogate": "none", "kl_coef": MULTIPLIER},
        steps=100_000,
    ),
    "bound, hard": Arm(
        environment=ENVIRONMENT,
        arguments={"n_steps": 512, "surrogate": "kl_bound", "kl_coef": MULTIPLIER, "divergence_limit": 2 * BOUND},
        steps=100_000,
    ),
}
