"""What of a language-model policy goes into a file: what training has changed, and no more."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from sb3_ppo_ext.language.model.adapters import unloaded
from sb3_ppo_ext.language.model.causal_lm import CausalLM


class TrainedPartOnly(nn.Module):
    """Mixed into a policy with a ``CausalLM`` as ``lm``: its state dict is what training changes.

    Never the reference, nor a base model under an adapter: they come from the model named at construction.
    """

    lm: CausalLM

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # a plain dict does
        """The trained parameters by name."""
        return trained_state(self, super().state_dict(*args, **kwargs))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes back what ``state_dict`` gave; ``ValueError`` if it is another policy's."""
        require_same_names(self, state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def save_pretrained(self, folder: str | Path) -> None:
        """The language model as a plain Hugging Face folder, which ``AutoModelForCausalLM`` loads; adapters merged."""
        merged_model(self.lm).save_pretrained(str(folder))


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
