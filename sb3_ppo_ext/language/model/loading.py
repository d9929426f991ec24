"""The model that the user names, made ready for training: without dropout, adapter in place, checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftMixedModel, PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from sb3_ppo_ext.host.pytorch.layouts import has_packed_products
from sb3_ppo_ext.language.model.adapters import adapted, has_adapter, merged
from sb3_ppo_ext.language.model.causal_lm import CausalLM, widened
from sb3_ppo_ext.language.model.end_tokens import EndTokens, check_ends
from sb3_ppo_ext.language.model.gguf_reading import without_quantiser
from sb3_ppo_ext.language.model.pretrained import pretrained

Model = PreTrainedModel | PeftModel | PeftMixedModel
ModelSource = str | Path | Callable[[], Model] | Model
Lora = LoraConfig | Mapping[str, Any]

LOGITS_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
LOGITS_TOLERANCE_OF_HALF = 0.1
GELUS_BY_TANH = (NewGELUActivation, FastGELUActivation, AccurateGELUActivation)


def load_model(source: ModelSource, dtype: str | torch.dtype | None = None) -> PreTrainedModel:
    """The model: a copy of a given one, what a factory returns, or that of a folder, GGUF file or hub name.

    With the adapters that are active in it merged into its weights: training and its reference begin as that model.
    """
    named = type(source).__name__ if isinstance(source, nn.Module) else repr(source)
    model: Any
    if isinstance(source, (str, Path)):
        model = pretrained(AutoModelForCausalLM, str(source), "auto" if dtype is None else dtype)
    else:
        model = source if isinstance(source, nn.Module) else source()
        # The user's model stays as it is: it is the reference, and is what is saved. A function may return the same
        # model with its adapter again and again.
        if isinstance(source, nn.Module) or (isinstance(model, nn.Module) and has_adapter(model)):
            model = copy.deepcopy(model)
        model = without_quantiser(merged(model, f"model={named}")) if isinstance(model, nn.Module) else model
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise ValueError(
            f"model={named} is a {type(model).__name__}; a causal language model of transformers, a function that "
            "returns one, or the folder or hub name of one is needed (a PEFT adapter on it is merged into it)"
        )
    if dtype is not None:
        nn.Module.to(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    without_dropout(model)
    with_fused_activations(model)
    return model


def compute_dtype_of(choice: Any, model: CausalLM, sampler: Any) -> torch.dtype | None:
    """The argument ``compute_dtype`` of a policy; ``ValueError`` where nothing computes in it, or in two precisions."""
    if choice is None:
        return None
    if choice not in ("bfloat16", torch.bfloat16):
        raise ValueError(f'compute_dtype={choice!r}: "bfloat16" or None is needed')
    if model.plain.dtype is not torch.float32:
        raise ValueError(f"compute_dtype={choice!r} with weights in {model.plain.dtype}: it is for weights in float32")
    if sampler is None:
        raise ValueError(
            f"compute_dtype={choice!r} with sampler=None: responses would be drawn in float32 and trained on in "
            'bfloat16; pass sampler="auto", so that what is trained on is computed again'
        )
    if not (has_packed_products(torch.bfloat16) or torch.cuda.is_available()):
        raise ValueError(f"compute_dtype={choice!r}: this processor has no products in bfloat16; pass None")
    return torch.bfloat16


def without_dropout(model: nn.Module) -> None:
    """Switches dropout off for good: a ratio of two random networks is not the ratio of two policies."""
    for module in model.modules():
        for name in ("p", "attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float) and (name != "p" or isinstance(module, nn.Dropout)):
                setattr(module, name, 0.0)
    model.eval()


def with_fused_activations(model: nn.Module) -> None:
    """Puts torch's one kernel in the place of GELU's approximation by tanh written out in Python.

    The same function up to rounding. Written out it takes a fifth of a GPT-2's training step on a CPU, and keeps six
    tensors for the gradient where one would do.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) in GELUS_BY_TANH:
                setattr(module, name, nn.GELU(approximate="tanh"))


def lora_config(lora: Lora | None, model: nn.Module) -> LoraConfig | None:
    """The adapter's settings; a mapping is completed with all linear layers as its place, or those of some blocks."""
    if lora is None or isinstance(lora, LoraConfig):
        return lora
    # GPT-2's linear layers keep their weights transposed, which PEFT takes as a setting.
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    # PEFT takes the numbers of blocks with names only.
    places = linear_names(model) if lora.get("layers_to_transform") is not None else "all-linear"
    return LoraConfig(**{"target_modules": places, "fan_in_fan_out": transposed, **lora})


def linear_names(model: nn.Module) -> list[str]:
    """The last parts of the names of all linear layers but the output layer."""
    output = cast(PreTrainedModel, model).get_output_embeddings()
    linear = (
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not output
    )
    return sorted({path.rpartition(".")[2] for path in linear})


def with_adapter(model: PreTrainedModel, lora: LoraConfig | None) -> PreTrainedModel | PeftModel:
    """The model with a fresh adapter as its only trainable part; all of it is trainable without one."""
    if lora is None:
        return model.requires_grad_(True)
    with_fresh = adapted(model, lora)
    without_dropout(with_fresh)  # get_peft_model returns it in training mode
    return with_fresh


def check_model(model: CausalLM, *, eos_token_id: EndTokens | None, sequence_length: int) -> None:
    """``ValueError`` where model, tokenizer and lengths do not belong together; no end tokens where it only reads."""
    plain, name = model.plain, type(model.plain).__name__
    rows = int(cast(nn.Linear, plain.get_output_embeddings()).weight.shape[0])
    if model.vocab_size > rows:
        raise ValueError(
            f"the tokenizer has {model.vocab_size} tokens, {name} only {rows}: they do not belong together. Load the "
            "model's own tokenizer, or call resize_token_embeddings on the model"
        )
    if eos_token_id is not None:
        check_ends(plain, eos_token_id, model.vocab_size)
    longest = getattr(plain.config, "max_position_embeddings", None)
    if isinstance(longest, int) and sequence_length > longest:
        raise ValueError(
            f"prompt and response together may have {sequence_length} tokens, {name} only {longest} "
            "(max_position_embeddings): lower max_prompt_length or max_new_tokens"
        )
    _check_logits(model, name)


@torch.no_grad()
def _check_logits(model: CausalLM, name: str) -> None:
    """Some models scale or cap their logits after the output layer (Gemma 2, Cohere); those are not understood here."""
    plain = model.plain
    device = next(plain.parameters()).device
    ids = torch.arange(min(4, model.vocab_size), device=device)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    found = model.logits(model.hidden(ids, mask)) * model.temperature
    expected = widened(
        plain(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[..., : model.vocab_size]
    )
    gap = (found - expected).abs().max().item()
    if not gap <= LOGITS_TOLERANCE.get(plain.dtype, LOGITS_TOLERANCE_OF_HALF):
        raise ValueError(
            f"{name}: its logits are not those of its output layer (they differ by {gap:.3g}): it scales or caps them "
            "in a way that is not supported"
        )


def frozen_copy(model: PreTrainedModel, *, vocab_size: int, temperature: float) -> CausalLM:
    """A copy of the model as the reference, which is never trained."""
    frozen = CausalLM(copy.deepcopy(model), vocab_size=vocab_size, temperature=temperature)
    frozen.requires_grad_(False)
    return frozen.eval()


@contextmanager
def as_reference(model: CausalLM, copied: CausalLM | None) -> Iterator[CausalLM]:
    """The frozen reference for the block: the copy, or the model itself with its adapter disabled."""
    if copied is not None:
        yield copied
    elif isinstance(model.lm, PeftModel):
        with model.lm.disable_adapter():
            yield model
    else:
        raise ValueError("this policy was built with reference=False: there is no reference to measure a KL to")
