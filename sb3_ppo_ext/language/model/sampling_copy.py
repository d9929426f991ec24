"""A copy of a language model to draw tokens from: adapters merged into it, weights as they are read fastest.

Only the weights of linear layers are copied. Embeddings, norms and constants are the trained model's own tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from sb3_ppo_ext.language.model.adapters import bottom_of, merged_layer, outermost_layers
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.packed_layers import Layout, SamplingLinear, weight_and_bias


class SamplingCopy:
    """``model`` once more, without adapters and gradients; as it was at the last ``refresh``."""

    def __init__(self, model: CausalLM, layout: Layout, rows: int) -> None:
        """Copies the structure for a batch of ``rows`` responses; ``refresh`` brings the weights."""
        self.trained, self.layout, self.rows = model, layout, rows
        # Logits of 16 and more are 0.1 apart in bfloat16, so that the head keeps the model's precision.
        self.head_layout = Layout(model.plain.dtype, packed=layout.packed)
        shared = {id(tensor): tensor for tensor in (*model.plain.parameters(), *model.plain.buffers())}
        plain = copy.deepcopy(model.plain, shared)
        self.model = CausalLM(plain, vocab_size=model.vocab_size, temperature=model.temperature).eval()

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings the copy to the trained weights as they are now, which stay untouched."""
        for path, layer in merged_layers(self.trained):
            self._load(path, layer)
        self.model.temperature = self.trained.temperature

    def _load(self, path: str, layer: nn.Module) -> None:
        """Puts a layer without adapters at its place in the copy; other layers than linear ones are shared."""
        plain = self.model.plain
        if (weights := weight_and_bias(layer)) is not None:
            laid_out = plain.get_submodule(path)
            if not isinstance(laid_out, SamplingLinear):
                is_head = laid_out is plain.get_output_embeddings()
                laid_out = SamplingLinear(self.head_layout if is_head else self.layout, self.rows)
            laid_out.load(*weights)
            layer = laid_out
        above, _, name = path.rpartition(".")
        setattr(plain.get_submodule(above), name, layer)


def merged_layers(model: CausalLM) -> Iterator[tuple[str, nn.Module]]:
    """The layers that hold parameters, by their paths, each with its adapters merged into a copy of it."""
    adapted = outermost_layers(model.plain)
    inside = {id(module) for layer in adapted.values() for module in layer.modules()}
    for path, layer in model.plain.named_modules(remove_duplicate=False):
        if path in adapted:
            yield path, merged_linear(layer) or merged_layer(copy.deepcopy(layer))
        elif id(layer) not in inside and any(True for _ in layer.parameters(recurse=False)):
            yield path, layer


def merged_linear(layer: nn.Module) -> nn.Linear | None:
    """The linear layer W + s B A of a layer with plain LoRA; None for other adapters, which PEFT itself merges.

    A copy of PEFT's layers takes three times as long as this.
    """
    if type(layer) is not LoraLinear or type(base := layer.get_base_layer()) is not nn.Linear:
        return None
    if layer.disable_adapters or layer.merged or layer.lora_variant or any(layer.lora_bias.values()):
        return None
    plain = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    weight = base.weight.detach()
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            weight = weight + layer.get_delta_weight(adapter).detach().to(weight.dtype)
    plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), base.bias
    return plain


@torch.no_grad()
def merged_weights(model: CausalLM) -> Iterator[tuple[str, Tensor]]:
    """The weights by the names that they have in the Hugging Face model, adapters merged into copies of them."""
    for path, layer in merged_layers(model):
        for name, parameter in layer.named_parameters():
            yield f"{path}.{name}" if path else name, parameter.detach()


def shapes_of(model: CausalLM) -> list[tuple[int, int]]:
    """The shapes [out, in] of the weights that a sampling copy lays out anew, that of the head at the end."""
    adapted = outermost_layers(model.plain)
    inside = {id(module) for layer in adapted.values() for module in layer.modules()}
    plain = [layer for layer in model.plain.modules() if id(layer) not in inside]
    layers = [*plain, *(bottom for layer in adapted.values() if (bottom := bottom_of(layer)) is not None)]
    head = bottom_of(model.plain.get_output_embeddings())
    found = [weight_and_bias(layer) for layer in (*(layer for layer in layers if layer is not head), head) if layer]
    return [(int(weights[0].shape[0]), int(weights[0].shape[1])) for weights in found if weights is not None]
