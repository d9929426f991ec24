"""The means that a loss over tokens can be, by the name that ``loss_mean`` has for each: an entry is all one needs.

B responses of L slots. Counts [B, L] are 1 for a token and 0 for padding; weights of tokens may be fractions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class LossMean(NamedTuple):
    """A mean over all tokens of an optimizer step: their weighted sum, divided by ``normalizer``."""

    weights: Callable[[Tensor], Tensor]  # counts [B, L] -> the weight of each token
    normalizer: Callable[[Tensor], Tensor]  # these weights [B, L] -> 0-d
    of_responses: Callable[[Tensor], Tensor]  # counts or a mask [B, L] -> the part [B] of each response, in any unit


def sum_of(weights: Tensor) -> Tensor:
    """The sum of the weights, 0-d, at least 1."""
    return weights.sum().clamp(min=1)


def _unchanged(count: Tensor) -> Tensor:
    return count


def _one_for_each_response(count: Tensor) -> Tensor:
    return count / count.sum(-1, keepdim=True).clamp(min=1)


def _slots(weights: Tensor) -> Tensor:
    return weights.new_full((), weights.numel())


def _tokens(mask: Tensor) -> Tensor:
    return mask.sum(-1).to(torch.float32)


def _ones(mask: Tensor) -> Tensor:
    return torch.ones(len(mask), device=mask.device)


LOSS_MEANS = {
    "token": LossMean(_unchanged, sum_of, _tokens),  # over the tokens
    "response": LossMean(_one_for_each_response, sum_of, _ones),  # over the responses, each the mean over its tokens
    "length": LossMean(_unchanged, _slots, _ones),  # over the slots, padding included (Dr. GRPO)
}
