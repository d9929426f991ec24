"""PEFT's adapters: those that a model brings with it become its weights, and a fresh one is put in to be trained.

A model with an adapter in it is one function; a second adapter beside it, or a reference with all adapters disabled,
would begin as another.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import LoraConfig, PeftMixedModel, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

LAYERS = (BaseTunerLayer, AuxiliaryTrainingWrapper)  # PEFT's, which replace those of the model

# Of logits before and after merging, as a fraction of the largest: what rounding does, and no forgotten adapter. In
# bfloat16 it is 0.04 where a model of 30 layers is merged right (2e-6 in float32): only gross errors show there.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
TOLERANCE_OF_HALF = 0.25
REMEDY = (
    "Pass a model without an adapter, or with one of a kind that can be merged (LoRA, IA3, OFT and others) on a base "
    "that is not quantised; PeftModel.from_pretrained(base, folder).merge_and_unload() is the merged model"
)

# What becomes of PEFT's warnings, by how they begin.
WARNINGS: tuple[tuple[Any, str, type[Warning]], ...] = (
    # PEFT before 0.22 asks for a property that transformers 5.24 deprecates; a user can do nothing about it.
    ("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning),
    ("ignore", "Model has .tie_word_embeddings=True", UserWarning),  # merging unties what has to be
    ("error", "Found missing adapter keys", UserWarning),  # an adapter that is partly random
)
_filters = threading.Lock()  # the filters of warnings are the process's: two threads must not put them back crosswise


@contextmanager
def warnings_of_peft() -> Iterator[None]:
    """PEFT's calls without the warning that concerns no user, and with an error for the one that must not be missed."""
    with _filters, warnings.catch_warnings():
        for action, message, category in WARNINGS:
            warnings.filterwarnings(action, message, category)
        yield


def adapted(model: nn.Module, lora: LoraConfig) -> PeftModel:
    """The model with a fresh adapter, which alone has gradients; the settings stay as they are."""
    with warnings_of_peft():
        return cast(PeftModel, get_peft_model(cast(Any, model), copy.deepcopy(lora)))  # it writes into the settings


def has_adapter(model: nn.Module) -> bool:
    """True where anything of PEFT's is in the model, active or not."""
    return any(_is_pefts(module) for module in model.modules())


def _is_pefts(module: nn.Module) -> bool:
    return any(kind.__module__.startswith("peft.") for kind in type(module).__mro__)


def merged(model: nn.Module, name: str, remedy: str = REMEDY) -> nn.Module:
    """The Hugging Face model with weights that do what ``model`` did with its active adapters; ``model`` is used up.

    Adapters that are not active, or disabled, are left out. ``ValueError`` where no weights do the same; in it ``name``
    is the argument and its value, and ``remedy`` what the user can do.
    """
    if not has_adapter(model):
        return model
    model.eval()
    kinds = ", ".join(sorted(_kinds(model))) or "PEFT"
    try:
        _below(model)  # refuses what has no logits of the prompt alone
        expected = _logits(model)
        plain = unloaded(model)
        gap = (_logits(plain) - expected).abs().max().item() / max(expected.abs().max().item(), 1.0)
    except (ValueError, NotImplementedError, RuntimeError, AttributeError) as error:  # PEFT has no one type for it
        raise ValueError(
            f"{name}: its adapter ({kinds}) cannot be merged into its weights: {error}. {remedy}"
        ) from error
    if not gap <= TOLERANCE.get(expected.dtype, TOLERANCE_OF_HALF):
        raise ValueError(
            f"{name}: with its adapter ({kinds}) merged into its weights, its logits differ by {gap:.2g} of the "
            f"largest: no weights do the same. {remedy}"
        )
    return plain


def without_adapters(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model without what adapters change; ``model`` is used up."""
    for layer in model.modules():
        if isinstance(layer, LAYERS):
            layer.enable_adapters(False)
    return unloaded(model)


@torch.no_grad()
def unloaded(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model, with the active adapters added to its weights and nothing of PEFT's left in it."""
    plain = _below(model)
    tied = _untie(plain)
    for path, layer in outermost_layers(plain).items():
        if _is_quantised(cast(nn.Module, bottom_of(layer))):
            raise ValueError(f"its base is quantised ({path}), and would be rounded again")
        above, _, name = path.rpartition(".")
        setattr(plain.get_submodule(above), name, merged_layer(layer))
    if left := sorted({type(module).__name__ for module in plain.modules() if _is_pefts(module)}):
        raise ValueError(f"{', '.join(left)}: there is no weight that it could be added to")
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    if plain._hf_peft_config_loaded:  # by transformers: save_pretrained() would write an adapter, under its names
        plain._hf_peft_config_loaded = False
        cast(Any, plain)._weight_conversions = None  # else those of the adapter's file
    if tied:
        _tie_again(plain)
    return plain


def _below(model: Any) -> PreTrainedModel:
    """The Hugging Face model inside PEFT's wrappers, with the layers of the adapters in it."""
    while isinstance(model, (PeftModel, PeftMixedModel, BaseTuner)):
        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            raise ValueError("it puts tokens before the prompt and changes no weights")
        model = model.model if isinstance(model, BaseTuner) else model.base_model
    return cast(PreTrainedModel, model)


def outermost_layers(plain: nn.Module) -> dict[str, nn.Module]:
    """PEFT's layers by their paths in the model; those within others are not among them."""
    layers: dict[str, nn.Module] = {}
    last = ""
    for path, module in plain.named_modules(remove_duplicate=False):  # a module comes before those within it
        if isinstance(module, LAYERS) and not (last and path.startswith(last)):
            layers[path], last = cast(nn.Module, module), f"{path}."
    return layers


def merged_layer(layer: Any) -> nn.Module:
    """The layer below PEFT's, which does what PEFT's did."""
    if isinstance(layer, AuxiliaryTrainingWrapper):
        if layer.disable_adapters:
            return cast(nn.Module, cast(Any, layer).original_module)
        return layer.unload_and_optionally_merge_module(True, False, None)
    if isinstance(layer.base_layer, BaseTunerLayer):  # adapters of several kinds wrap each other
        layer.base_layer = merged_layer(layer.base_layer)
    if layer.disable_adapters:
        if layer.merged:
            layer.unmerge()
    elif not layer.merged:  # what is merged already is what the layer computes, whatever is active
        layer.merge()
    return cast(nn.Module, layer.get_base_layer())


def bottom_of(module: Any) -> nn.Module | None:
    """The plain layer inside PEFT's."""
    while isinstance(module, LAYERS):
        inner: Any = module
        module = inner.base_layer if isinstance(module, BaseTunerLayer) else inner.original_module
    return cast("nn.Module | None", module)


def _is_quantised(layer: nn.Module) -> bool:
    """True where the layer's numbers are packed, whatever the model's settings: it may have been unpacked since."""
    tensors = (*layer.parameters(), *layer.buffers())
    return any(
        type(tensor) not in (nn.Parameter, Tensor) or not tensor.dtype.is_floating_point or tensor.element_size() < 2
        for tensor in tensors
    )


def _untie(plain: PreTrainedModel) -> bool:
    """Gives the output layer weights of its own, where it shares those of the embedding: an adapter is of one of them.

    Merged into weights that are shared it would change the other as well.
    """
    words, output = bottom_of(plain.get_input_embeddings()), bottom_of(plain.get_output_embeddings())
    shared: Tensor | None = getattr(words, "weight", None)
    if shared is None or output is None or output.weight is not shared:
        return False
    output.weight = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    return True


def _tie_again(plain: PreTrainedModel) -> None:
    """Puts back what ``_untie`` undid where no adapter made a difference; else the model's settings say that it did."""
    words, output = cast(Any, plain.get_input_embeddings()), cast(Any, plain.get_output_embeddings())
    if torch.equal(words.weight, output.weight):
        output.weight = words.weight
    else:
        plain.config.get_text_config().tie_word_embeddings = plain.config.tie_word_embeddings = False


def _kinds(model: nn.Module) -> set[str]:
    """The types of the adapters as PEFT names them."""
    configs = [config for module in model.modules() for config in _configs_of(module)]
    return {str(getattr(config.peft_type, "value", config.peft_type)) for config in configs}


def _configs_of(module: Any) -> list[Any]:
    configs = getattr(module, "peft_config", None)
    return list(configs.values()) if isinstance(configs, dict) else []


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Logits of a few tokens from both ends of the vocabulary: added ones, which adapters train, are at its end."""
    words = cast(nn.Embedding, bottom_of(model.get_input_embeddings()))
    rows, device = len(words.weight), words.weight.device
    ids = torch.tensor([*range(min(4, rows)), *range(max(rows - 4, 0), rows)], device=device)[None]
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits
