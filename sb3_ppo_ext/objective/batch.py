"""The records that objectives and policies exchange: minibatches of B rows, under TorchRL's default key names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from sb3_ppo_ext.objective.distributions import ActionDistribution

Observation = Tensor | dict[str, Tensor]


class Totals(NamedTuple):
    """The sums over a minibatch of responses by which the shares of its parts are computed."""

    weight: Tensor  # 0-d, of the weights of its tokens; at least 1
    normalizer: Tensor  # 0-d, what the weighted sum over its tokens is divided by in the loss


class Minibatch(NamedTuple):
    """B rows of a rollout. All but observation and action are [B]."""

    observation: Observation
    action: Tensor
    action_log_prob: Tensor
    state_value: Tensor
    advantage: Tensor
    value_target: Tensor
    distribution: ActionDistribution | None = None  # of the policy that collected the rollout
    mask: Tensor | None = None  # [B, L]: which slots hold tokens, or how much each counts
    ref_log_prob: Tensor | None = None  # of the actions under the frozen reference
    nll_weight: Tensor | None = None  # of each action's negative log-likelihood in the loss, coefficient included
    lengths: np.ndarray | None = None  # [B, 2], on the host: how many tokens prompt and response have
    totals: Totals | None = None  # of the minibatch of all processes, of which these rows are a part; None: of these


class Evaluation(NamedTuple):
    """A minibatch under the current policy; tensors are [B], or [B, L] under a mask."""

    log_prob: Tensor
    entropy: Tensor | None  # None: no closed form
    value: Tensor  # in reward units
    distribution: ActionDistribution | None = None
    mask: Tensor | None = None
    ref_log_prob: Tensor | None = None  # of the same actions under a frozen reference policy
    ref_kl: Tensor | None = None  # KL(new || reference) where both whole distributions are known
