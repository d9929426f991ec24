"""One row for a prompt and all responses to it (``share_prompts``): the model computes the prompt once for them.

With n responses of r tokens each to a prompt of p tokens, a pass has p + n r slots and not n (p + r).
"""

from __future__ import annotations

from typing import Any

from sb3_ppo_ext.language.training.micro_batches import mapped
from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer
from sb3_ppo_ext.objective.batch import Minibatch


def check_shared_prompts(model: Any, shards: int = 1) -> None:
    """Refuses environments and minibatches of PPOX with which the responses of a group cannot share their prompt."""
    if model.env is None or not model.rollout_buffer_kwargs.get("share_prompts"):
        return
    if not model.env.has_attr("group_ids"):
        raise ValueError(
            "share_prompts=True: in episodes of several turns each response of a group has a prompt of its own; pass "
            "False, or PromptVecEnv(..., group_size=n)"
        )
    group_size = model.env.get_attr("group_size")[0]
    if model.batch_size % (shards * group_size):
        raise ValueError(
            f"batch_size={model.batch_size} with share_prompts=True: minibatches have whole groups; pass a multiple of "
            f"{shards * group_size}"
        )


def branches_in(buffer: SequenceRolloutBuffer) -> int:
    """How many responses, of environments beside each other, share a prompt in training; 1: each has its own."""
    return int((buffer.group_ids[0] == buffer.group_ids[0, 0]).sum()) if buffer.settings.share_prompts else 1


def require_equal_prompts(buffer: SequenceRolloutBuffer, branches: int) -> None:
    """``ValueError`` where ``branches`` responses beside each other in a full buffer have different prompts."""
    for array in buffer.observations.values():
        prompts = array.reshape(buffer.buffer_size, -1, branches, array.shape[-1])
        if (prompts != prompts[:, :, :1]).any():
            raise ValueError("share_prompts=True: the responses of a group have different prompts; pass False")


def sharing_prompts(minibatch: Minibatch, branches: int) -> Minibatch:
    """The minibatch, without ``lengths``, with one prompt for every ``branches`` responses, whose prompts are equal."""
    return mapped(minibatch, lambda prompt: prompt[::branches], lambda token: token)
