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
from sb3_ppo_ext.language.model.tokens import responses_of, slots_of_rows
from sb3_ppo_ext.language.training.loss_means import LOSS_MEANS, sum_of
from sb3_ppo_ext.language.training.token_settings import TokenSettings
from sb3_ppo_ext.objective.batch import Minibatch, Totals

Mapped = Callable[[Tensor], Tensor]


def on_device(numbers: Any, device: torch.device) -> Tensor:
    """A few numbers of the host on the device, without waiting for what is still being computed there."""
    return torch.as_tensor(numbers).to(device, non_blocking=True)


def branches_of(minibatch: Minibatch) -> int:
    """How many responses, one after the other, share each prompt of a minibatch; 1 where each has its own."""
    assert isinstance(minibatch.observation, dict)
    return len(minibatch.action) // len(minibatch.observation[ATTENTION_MASK])


def rows_of(minibatch: Minibatch, rows: Tensor | slice, prompts: Tensor | slice | None = None) -> Minibatch:
    """Some responses of a minibatch or of a whole rollout, without their ``lengths``.

    ``prompts`` are those of their prompts, where these are not the same rows.
    """
    of_prompts = rows if prompts is None else prompts
    return mapped(minibatch, lambda prompt: prompt[of_prompts], lambda token: token[rows])


def mapped(minibatch: Minibatch, of_prompt: Mapped, of_token: Mapped) -> Minibatch:
    """The minibatch with one function applied to tensors of prompts [G, P], the other to those of tokens [B, L]."""
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
    groups = row_groups(slots_of(minibatch).tolist(), settings.micro_batch_tokens)
    return split(minibatch, groups, without_padding, settings.loss_mean)


def slots_of(minibatch: Minibatch) -> np.ndarray:
    """The slots [G] that a pass takes for each prompt with its responses."""
    lengths = lengths_of(minibatch)
    return slots_of_rows(lengths[:: branches_of(minibatch), 0], lengths[:, 1])


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
    prompts = (minibatch.observation[ATTENTION_MASK] > 0).sum(-1).repeat_interleave(branches_of(minibatch))
    lengths: np.ndarray = torch.stack([prompts, (minibatch.mask > 0).sum(-1)], dim=-1).cpu().numpy()
    return lengths


def split(
    minibatch: Minibatch, groups: Iterable[list[int]], shaped: Callable[[Minibatch], Minibatch], loss_mean: str
) -> Iterator[MicroBatch]:
    """The prompts in groups, with their responses, each ``shaped``: their ``share * mean`` are the minibatch's loss.

    The mean is over the whole minibatch, whatever its split; over that of all processes where it has their ``totals``.
    """
    mask, lengths, branches = minibatch.mask, lengths_of(minibatch), branches_of(minibatch)
    assert mask is not None
    weights = token_weights(mask, loss_mean, minibatch.advantage.dtype)
    total, normalizer = minibatch.totals or totals_of(weights, loss_mean)
    for prompts in groups:
        rows = responses_of(prompts, branches)
        index, of_prompts = (_index(numbers, mask.device) for numbers in (rows, prompts))
        group = rows_of(minibatch._replace(mask=weights), index, of_prompts)._replace(lengths=lengths[rows])
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
    """Row numbers in groups: of similar length (in slots), at most ``max_tokens`` slots when padded to the longest."""
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
