"""The part of a language-model policy that is saved: what training has changed, and no more."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from sb3_ppo_ext.language.model.adapters import unloaded
from sb3_ppo_ext.language.model.causal_lm import CausalLM


def trained_names(policy: nn.Module) -> set[str]:
    """Names of the parameters that training changes; a weight used in two places counts under both names."""
    named = policy.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if parameter.requires_grad and not name.startswith("reference.")}


def trained_state(policy: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """The trained part of a state dict. Buffers are constants of the model (masks, rotary frequencies)."""
    names = trained_names(policy)
    return {name: tensor for name, tensor in state.items() if name in names}


def require_same_names(policy: nn.Module, state: Mapping[str, Any]) -> None:
    """``ValueError`` unless ``state`` has the policy's trained parameters, no more and no fewer."""
    expected = trained_names(policy)
    missing, unknown = sorted(expected - set(state)), sorted(set(state) - expected)
    if missing or unknown:
        raise ValueError(
            f"the saved parameters are of another policy: {len(missing)} are missing ({missing[:3]}), {len(unknown)} "
            f"unknown ({unknown[:3]}); the same model, lora and value are needed"
        )


def merged_model(model: CausalLM) -> PreTrainedModel:
    """The Hugging Face model, with an adapter's product added to the weights it belongs to."""
    if not isinstance(model.lm, PeftModel):
        return model.plain
    return unloaded(copy.deepcopy(model.lm))
