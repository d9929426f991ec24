"""The sampled tokens of a rollout under the frozen reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sb3_ppo_ext.language.training.micro_batches import row_groups
from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer
from sb3_ppo_ext.monitoring.divergence import DivergedError, first_bad

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy


@torch.no_grad()
def under_reference(
    buffer: SequenceRolloutBuffer, policy: LanguageModelPolicy, rows_at_once: int, branches: int = 1
) -> tuple[np.ndarray, np.ndarray | None]:
    """log p of every sampled token under the frozen reference [T, N, L], 0 where there is none; and the exact KL to it.

    The latter is None unless the settings have ``ref_kl_estimator="full"``. ``branches`` responses, which follow each
    other, share a prompt.
    """
    log_probs = np.zeros(buffer.masks.shape, np.float32).reshape(-1, buffer.action_dim)
    exact_kl = np.zeros_like(log_probs) if buffer.settings.exact_kl else None
    tokens = policy.tokens(
        {name: buffer.flat(array) for name, array in buffer.observations.items()},
        buffer.flat(buffer.actions),
        buffer.flat(buffer.masks),
    )
    tokens = tokens.sharing(branches)
    slots = tokens.slots()
    at_once = max(rows_at_once // branches, 1) * max(slots)
    for prompts in row_groups(slots, buffer.settings.micro_batch_tokens or at_once):
        group, rows = tokens.of_prompts(prompts)
        group = group.trimmed()
        hidden, width = policy.reference_states(group), group.response.shape[1]
        log_probs[rows, :width] = policy.reference_log_prob(group, hidden).cpu().numpy()
        if exact_kl is not None:
            exact_kl[rows, :width] = policy.reference_kl(group, policy.states(group)[0], hidden).cpu().numpy()
    for what, array in (("the reference's log-probability", log_probs), ("the KL to the reference", exact_kl)):
        if array is not None and (bad := first_bad(array)) is not None:
            raise DivergedError(f"{what} of response {bad.index[0]}, token {bad.index[1]}, is {bad}.")
    shape = buffer.masks.shape
    return log_probs.reshape(shape), None if exact_kl is None else exact_kl.reshape(shape)
