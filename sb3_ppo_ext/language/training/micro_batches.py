"""A minibatch of responses split for memory: micro-batches whose losses add up to its own.

The lengths of prompts and responses are known on the host, so that nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK
from sb3_ppo_ext.language.training.loss_means import LOSS_MEANS, sum_of
from sb3_ppo_ext.language.training.token_settings import TokenSettings
from sb3_ppo_ext.objective.batch import Minibatch, Totals

Mapped = Callable[[Tensor], Tensor]


def on_device(numbers: Any, device: torch.device) -> Tensor:
    """A few numbers of the host on the device, without waiting for what is still being computed there."""
    return torch.as_tensor(numbers).to(device, non_blocking=True)


def rows_of(minibatch: Minibatch, rows: Tensor | slice) -> Minibatch:
    """Some responses of a minibatch or of a whole rollout, without their ``lengths``."""
    return mapped(minibatch, lambda prompt: prompt[rows], lambda token: token[rows])


def mapped(minibatch: Minibatch, of_prompt: Mapped, of_token: Mapped) -> Minibatch:
    """The minibatch with one function applied to tensors of prompts [B, P], the other to those of tokens [B, L]."""
    assert isinstance(minibatch.observation, dict) and minibatch.mask is not None
    return Minibatch(
        {name: of_prompt(tensor) for name, tensor in minibatch.observation.items()},
        of_token(minibatch.action),
        of_token(minibatch.action_log_prob),
        of_token(minibatch.state_value),
        of_token(minibatch.advantage),
        of_token(minibatch.value_target),
        mask=of_token(minibatch.mask),
        ref_log_prob=None if minibatch.ref_log_prob is None else of_token(minibatch.ref_log_prob),
        nll_weight=None if minibatch.nll_weight is None else of_token(minibatch.nll_weight),
    )


class MicroBatch(NamedTuple):
    """Some rows of a minibatch, without the columns that are padding in all of them."""

    minibatch: Minibatch  # its mask is the weight of each token
    share: Tensor  # 0-d, of the mean over these rows in the minibatch's loss
    weight: Tensor  # 0-d, of these rows' tokens in the minibatch's statistics


def micro_batches(minibatch: Minibatch, settings: TokenSettings) -> Iterator[MicroBatch]:
    """Rows of at most ``micro_batch_tokens`` slots together (or a single row), longest first, without padding."""
    counts = lengths_of(minibatch).sum(-1).tolist()
    return split(minibatch, row_groups(counts, settings.micro_batch_tokens), without_padding, settings.loss_mean)


def rescaled(rows: Tensor, mask: Tensor, loss_mean: str) -> Tensor:
    """A factor [B] for each row: 0 but for the chosen ``rows``, and such that the mean over all is that over these.

    ``rows`` [B] are True or False, ``mask`` [B, L] as in the minibatch. Without a chosen row all factors are 0.
    """
    weights = LOSS_MEANS[loss_mean].of_responses(mask)
    chosen = weights * rows
    factor: Tensor = rows * (weights.sum() / chosen.sum().clamp(min=1.0))
    return factor


def lengths_of(minibatch: Minibatch) -> np.ndarray:
    """``lengths``, counted here where the minibatch comes without them; that waits for the device."""
    if minibatch.lengths is not None:
        return minibatch.lengths
    assert minibatch.mask is not None and isinstance(minibatch.observation, dict)
    masks = minibatch.observation[ATTENTION_MASK] > 0, minibatch.mask > 0
    lengths: np.ndarray = torch.stack([mask.sum(-1) for mask in masks], dim=-1).cpu().numpy()
    return lengths


def split(
    minibatch: Minibatch, groups: Iterable[list[int]], shaped: Callable[[Minibatch], Minibatch], loss_mean: str
) -> Iterator[MicroBatch]:
    """The rows in groups, each ``shaped``, whose ``share * mean`` add up to the loss of the minibatch.

    The mean is over the whole minibatch, whatever its split; over that of all processes where it has their ``totals``.
    """
    mask, lengths = minibatch.mask, lengths_of(minibatch)
    assert mask is not None
    weights = token_weights(mask, loss_mean, minibatch.advantage.dtype)
    total, normalizer = minibatch.totals or totals_of(weights, loss_mean)
    for rows in groups:
        index = _index(rows, mask.device)
        group = rows_of(minibatch._replace(mask=weights), index)._replace(lengths=lengths[rows])
        counted = weights[index].sum()
        yield MicroBatch(shaped(group), counted / normalizer, counted / total)


def token_weights(mask: Tensor, loss_mean: str, dtype: torch.dtype) -> Tensor:
    """The weight [B, L] of each slot in the loss: 1 for a token; with "response" those of a response add up to 1."""
    return LOSS_MEANS[loss_mean].weights(mask.to(dtype))


def totals_of(weights: Tensor, loss_mean: str) -> Totals:
    """The totals of a minibatch by the weights [B, L] of its tokens."""
    return Totals(sum_of(weights), LOSS_MEANS[loss_mean].normalizer(weights))


def _index(rows: list[int], device: torch.device) -> Tensor | slice:
    """The rows as an index; a slice, which copies nothing, where they follow each other."""
    following = rows == list(range(rows[0], rows[0] + len(rows)))
    return slice(rows[0], rows[0] + len(rows)) if following else on_device(rows, device)


def row_groups(lengths: list[int], max_tokens: int | None) -> Iterator[list[int]]:
    """Row numbers in groups: of similar length, at most ``max_tokens`` slots when padded to the longest."""
    if max_tokens is None:
        yield list(range(len(lengths)))
        return
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        size = max(max_tokens // max(lengths[order[0]], 1), 1)
        yield order[:size]
        order = order[size:]


def without_padding(minibatch: Minibatch) -> Minibatch:
    """The rows without the columns that are padding in all: on the left of prompts, on the right of responses."""
    prompt, response = lengths_of(minibatch).max(axis=0).clip(min=1).tolist()
    return mapped(minibatch, lambda ids: ids[:, -prompt:], lambda token: token[:, :response])
