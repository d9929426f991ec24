"""The part of a language-model policy that is saved: what training has changed, and no more."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from sb3_ppo_ext.language.model.adapters import merged
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.saving import remove, save_folder_atomically

ADAPTER = "adapter_config.json"
KEEP = "model.save() and the checkpoints of a run keep the adapter as it is"
WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")


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
    """The Hugging Face model, with an adapter's product added to the weights it belongs to.

    The sum is formed in float32 and rounded last. ``ValueError`` where its logits are not those with the adapter.
    """
    if not isinstance(model.lm, PeftModel):
        return model.plain
    dtype = model.plain.dtype
    wide = copy.deepcopy(model.lm)
    if dtype in (torch.float16, torch.bfloat16):
        wide = wide.float()
    return cast(PreTrainedModel, merged(wide, "the trained model", KEEP).to(dtype))


def write_folder(model: CausalLM, folder: str | Path, tokenizer: Any, generation: Mapping[str, Any]) -> None:
    """Writes the model as a Hugging Face folder, with the tokenizer and its chat template if there is one.

    ``generation`` are settings of its ``generation_config.json``. Weights that were there by other names are removed.
    """
    target = Path(folder)
    if (target / ADAPTER).exists():
        raise ValueError(
            f"{folder} holds an adapter ({ADAPTER}), which would be put on the merged model once more when it is "
            "loaded: choose another folder"
        )
    plain = merged_model(model)
    written: set[str] = set()

    def write(path: Path) -> None:
        with generation_settings(plain, generation):
            plain.save_pretrained(path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        written.update(file.name for file in path.iterdir())

    save_folder_atomically(target, write)
    for pattern in WEIGHTS:
        for file in target.glob(pattern):
            if file.name not in written:
                remove(file)


@contextmanager
def generation_settings(model: PreTrainedModel, settings: Mapping[str, Any]) -> Iterator[None]:
    """The model's generation config has these settings inside."""
    before = model.generation_config
    model.generation_config = copy.deepcopy(before) if before is not None else GenerationConfig()
    model.generation_config.update(**settings)
    try:
        yield
    finally:
        model.generation_config = before
