"""What a policy asks its frozen reference: states and log-probabilities of the same tokens. Letters as in ``model``."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from sb3_ppo_ext.language.model.causal_lm import CausalLM, Tokens, before_response, scattered
from sb3_ppo_ext.language.model.loading import as_reference


class WithReference(nn.Module):
    """Mixed into a policy with a ``CausalLM`` as ``lm``, and a frozen copy of it where no adapter is to disable."""

    lm: CausalLM
    reference: CausalLM | None

    def as_reference(self) -> AbstractContextManager[CausalLM]:
        """The frozen reference for the block."""
        return as_reference(self.lm, self.reference)

    @torch.no_grad()
    def reference_states(self, tokens: Tokens) -> Tensor:
        """The reference's states [n, D] before each of the n tokens that are there."""
        with self.as_reference() as reference:
            hidden = reference.hidden(*tokens.joined(), first=tokens.first)
            return before_response(hidden, tokens.prompt.shape[1])[tokens.mask]

    @torch.no_grad()
    def reference_log_prob(self, tokens: Tokens, hidden: Tensor | None = None) -> Tensor:
        """Log-probability of every token [B, L] under the reference, from its states if they are known; 0 elsewhere."""
        hidden = self.reference_states(tokens) if hidden is None else hidden
        with self.as_reference() as reference:
            log_prob, _ = reference.log_prob_and_entropy(hidden, tokens.response[tokens.mask], entropy_grad=False)
        return scattered(log_prob, tokens.mask)
