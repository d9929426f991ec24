"""The frozen reference of a policy: its states and log-probabilities of the same tokens. Letters: see ``tokens``."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.full_kl import full_kl
from sb3_ppo_ext.language.model.loading import as_reference
from sb3_ppo_ext.language.model.tokens import Tokens


class WithReference(nn.Module):
    """A policy with a ``CausalLM`` as ``lm``, and a frozen copy of it where there is no adapter to disable."""

    lm: CausalLM
    reference: CausalLM | None

    def as_reference(self) -> AbstractContextManager[CausalLM]:
        """The frozen reference for the block."""
        return as_reference(self.lm, self.reference)

    @torch.no_grad()
    def reference_states(self, tokens: Tokens) -> Tensor:
        """The reference's states [B, L, D] before every token."""
        with self.as_reference() as reference:
            return tokens.response_states(reference.hidden(*tokens.joined(), tokens.layout))

    @torch.no_grad()
    def reference_log_prob(self, tokens: Tokens, hidden: Tensor | None = None) -> Tensor:
        """Log-probability [B, L] of every token under the reference, whose states may be given; 0 in masked slots."""
        hidden = self.reference_states(tokens) if hidden is None else hidden
        with self.as_reference() as reference:
            return reference.token_log_prob_and_entropy(hidden, tokens, entropy_grad=False)[0]

    def reference_kl(self, tokens: Tokens, hidden: Tensor, reference_hidden: Tensor | None = None) -> Tensor:
        """The exact KL [B, L] to the reference after the policy's states ``hidden`` [B, L, D], in nats."""
        frozen = self.reference_states(tokens) if reference_hidden is None else reference_hidden
        kl = full_kl(self.lm, tokens.gathered(hidden), self.as_reference, tokens.gathered(frozen))
        return tokens.scattered(kl)
