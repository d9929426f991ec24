"""Tiny causal models of every tested family, whole or adapted, and their log-probabilities."""

from __future__ import annotations

import torch

from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.loading import load_model, lora_config, with_adapter
from sb3_ppo_ext.language.model.tokens import Tokens
from tests.language import tiny

TEMPERATURE = 0.7


def core(
    family: str = "gpt2", *, lora: bool = False, temperature: float = TEMPERATURE, vocab_size: int = 24
) -> CausalLM:
    plain = load_model(lambda: tiny.model(family))
    adapted = with_adapter(plain, lora_config({"r": 2, "init_lora_weights": False} if lora else None, plain))
    return CausalLM(adapted, vocab_size=vocab_size, temperature=temperature)


def evaluated(model: CausalLM, tokens: Tokens) -> torch.Tensor:
    """Log-probabilities [B, L] by teacher forcing."""
    hidden = tokens.response_states(model.hidden(*tokens.joined()))
    return model.token_log_prob_and_entropy(hidden, tokens, entropy_grad=False)[0]
