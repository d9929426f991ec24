"""The KL to the reference from both whole distributions: exact for every token, where k1, k2 and k3 are estimates.

It takes a second output layer per token, and the policy's states again once per rollout; its variance is that of the
states alone. Letters as in ``model``; n tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from sb3_ppo_ext.language.model.causal_lm import CausalLM

Reference = Callable[[], AbstractContextManager[CausalLM]]  # the frozen model, for the block


def kl_of(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``sum_v p_v (log p_v - log q_v)`` over the last dimension; a token that p excludes adds nothing."""
    gap = (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)
    return (log_p.exp() * gap).sum(dim=-1)


def full_kl(model: CausalLM, hidden: Tensor, reference: Reference, ref_hidden: Tensor) -> Tensor:
    """KL(policy || reference) [n] in nats, of the distributions after ``hidden`` and ``ref_hidden``, both [n, D].

    Both are at the policy's temperature. Gradients go to the policy alone.
    """

    def of_some(hidden: Tensor, ref_hidden: Tensor) -> Tensor:
        with reference() as frozen:  # its parameters take no gradient
            log_q = frozen.logits(ref_hidden).log_softmax(dim=-1)
        return kl_of(model.logits(hidden).log_softmax(dim=-1), log_q)

    return torch.cat(model.by_rows(of_some, hidden, ref_hidden))
