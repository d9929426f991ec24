"""A minibatch of three rows and its evaluation, with numbers that are set by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.distributions import Bernoulli


def numbers(*values: float) -> Tensor:
    return torch.tensor(values)


def minibatch(scale: float = 1.0) -> Minibatch:
    return Minibatch(
        observation=torch.zeros(3, 1),
        action=torch.zeros(3),
        action_log_prob=numbers(-1.0, -2.0, -0.5),
        state_value=scale * numbers(0.0, 1.0, 2.0),
        advantage=numbers(1.0, -1.0, 0.5),
        value_target=scale * numbers(1.0, 0.0, 2.5),
        distribution=Bernoulli(torch.zeros(3, 1)),
    )


def evaluation(scale: float = 1.0) -> Evaluation:
    return Evaluation(
        log_prob=numbers(-0.5, -2.5, -0.5),
        entropy=numbers(0.7, 0.2, 0.3),
        value=scale * numbers(0.5, 0.8, 1.0),
        distribution=Bernoulli(torch.ones(3, 1)),
    )
