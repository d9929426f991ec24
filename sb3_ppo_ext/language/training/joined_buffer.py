"""The responses of all processes in one buffer: what is relative to groups, tokens or scores is relative to all.

The arrays of a rollout travel once. Every process computes advantages from all of them, hence the same ones, and takes
those of its responses back into its buffer.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from sb3_ppo_ext.distributed.processes import Processes
from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer

# Arrays [T, N, ...] that travel: all but the prompts, and those that follow from them.
TRAVELLING = (
    *("actions", "rewards", "episode_starts", "masks", "values", "log_probs", "ended"),
    *("successes", "group_ids", "places", "ref_log_probs", "full_kl", "sampler_log_probs"),
)
RETURNING = ("advantages", "returns", "token_rewards")


def joined(buffer: SequenceRolloutBuffer, processes: Processes) -> SequenceRolloutBuffer:
    """The buffer with the environments of all processes, by rank; the prompts are not in it.

    Advantages have to be computed in it. In one process it is ``buffer`` itself.
    """
    if processes.count == 1:
        return buffer
    everywhere = processes.objects({name: getattr(buffer, name) for name in (*TRAVELLING, "last_values")})
    whole = copy.copy(buffer)
    whole.observations = {}
    for name in TRAVELLING:
        setattr(whole, name, _concatenated([arrays[name] for arrays in everywhere], axis=1))
    whole.last_values = _concatenated([arrays["last_values"] for arrays in everywhere], axis=0)
    whole.n_envs = whole.rewards.shape[1]
    for name in RETURNING:
        setattr(whole, name, np.zeros(whole.masks.shape, np.float32))
    return whole


def _concatenated(arrays: list[Any], axis: int) -> Any:
    """The arrays of all processes; None where they have none."""
    return None if arrays[0] is None else np.concatenate(arrays, axis=axis)


def take_back(buffer: SequenceRolloutBuffer, whole: SequenceRolloutBuffer, environments: slice) -> None:
    """Gives the buffer what was computed for its ``environments`` among those of ``whole``."""
    if whole is not buffer:
        for name in RETURNING:
            setattr(buffer, name, np.ascontiguousarray(getattr(whole, name)[:, environments]))
