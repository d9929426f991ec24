"""A minibatch of responses split for memory: parts whose losses add up to its own.

How long prompts and responses are is known on the host, so that nobody waits for the device to say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK
from sb3_ppo_ext.objective.batch import Minibatch

Part = Callable[[Tensor], Tensor]


def on_device(numbers: Any, device: torch.device) -> Tensor:
    """A few numbers of the host there, without waiting for what is still being computed there."""
    return torch.as_tensor(numbers).to(device, non_blocking=True)


def rows_of(minibatch: Minibatch, rows: Tensor | slice) -> Minibatch:
    """The given responses of a minibatch or of a whole rollout, but not their ``lengths``."""
    return mapped(minibatch, lambda prompt: prompt[rows], lambda token: token[rows])


def mapped(minibatch: Minibatch, of_prompt: Part, of_token: Part) -> Minibatch:
    """Every tensor of the prompts [B, P] and of the tokens [B, L] through its function."""
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
    )


class MicroBatch(NamedTuple):
    """Part of a minibatch, without the columns that are padding in all of its rows."""

    minibatch: Minibatch  # its mask says how much each token counts
    share: Tensor  # of this part's mean in the minibatch's loss, 0-d
    weight: Tensor  # of this part's tokens in the minibatch's statistics, 0-d


def micro_batches(minibatch: Minibatch, *, loss_mean: str, max_tokens: int | None) -> Iterator[MicroBatch]:
    """Parts of at most ``max_tokens`` token slots (or one row), longest first, without padding."""
    return in_parts(minibatch, row_groups(token_counts(minibatch), max_tokens), without_padding, loss_mean=loss_mean)


def lengths_of(minibatch: Minibatch) -> np.ndarray:
    """``lengths``, counted where nobody has; that waits for the device."""
    if minibatch.lengths is not None:
        return minibatch.lengths
    assert minibatch.mask is not None and isinstance(minibatch.observation, dict)
    masks = minibatch.observation[ATTENTION_MASK] > 0, minibatch.mask > 0
    lengths: np.ndarray = torch.stack([mask.sum(-1) for mask in masks], dim=-1).cpu().numpy()
    return lengths


def token_counts(minibatch: Minibatch) -> list[int]:
    """Of each row, prompt and response together."""
    counts: list[int] = lengths_of(minibatch).sum(-1).tolist()
    return counts


def in_parts(
    minibatch: Minibatch,
    groups: Iterable[list[int]],
    shaped: Callable[[Minibatch], Minibatch],
    *,
    loss_mean: str,
) -> Iterator[MicroBatch]:
    """The rows in groups, each ``shaped``, so that the shares sum to the loss.

    The mean is over the whole minibatch, whatever its split: ``share * mean of the part`` add up to it exactly.
    """
    mask, lengths = minibatch.mask, lengths_of(minibatch)
    assert mask is not None
    count = mask.to(minibatch.advantage.dtype)
    weights = count / count.sum(-1, keepdim=True).clamp(min=1) if loss_mean == "response" else count
    total = weights.sum().clamp(min=1)
    normalizer = mask.numel() if loss_mean == "length" else total
    for rows in groups:
        index = _index(rows, mask.device)
        part = rows_of(minibatch._replace(mask=weights), index)._replace(lengths=lengths[rows])
        counted = weights[index].sum()
        yield MicroBatch(shaped(part), counted / normalizer, counted / total)


def _index(rows: list[int], device: torch.device) -> Tensor | slice:
    """Rows that follow each other need not be copied."""
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


def without_padding(part: Minibatch) -> Minibatch:
    """The responses without the columns that nobody uses, prompts on the left and responses on the right."""
    prompt, response = lengths_of(part).max(axis=0).clip(min=1).tolist()
    return mapped(part, lambda ids: ids[:, -prompt:], lambda token: token[:, :response])
