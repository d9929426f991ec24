"""A copy of a language model to draw tokens from: adapters merged into it, weights as they are read fastest.

Only the weights of linear layers are copied. Embeddings, norms and constants are the trained model's own tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from sb3_ppo_ext.language.model.adapters import LAYERS, bottom_of, merged_layer, outermost_layers
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.packed_layers import Layout, SamplingLinear, weight_and_bias


class SamplingCopy:
    """``model`` once more, without adapters and gradients; as it was at the last ``refresh``."""

    def __init__(self, model: CausalLM, layout: Layout, rows: int) -> None:
        """Copies the structure for a batch of ``rows`` responses; ``refresh`` brings the weights."""
        self.trained, self.layout, self.rows = model, layout, rows
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
                laid_out = SamplingLinear(self.layout, self.rows)
            laid_out.load(*weights)
            layer = laid_out
        above, _, name = path.rpartition(".")
        setattr(plain.get_submodule(above), name, layer)


def merged_layers(model: CausalLM) -> Iterator[tuple[str, nn.Module]]:
    """The layers that hold parameters, by their paths, each with its adapters merged into a copy of it."""
    adapted = outermost_layers(model.plain)
    for path, layer in model.plain.named_modules(remove_duplicate=False):
        if isinstance(layer, LAYERS) and path in adapted:
            yield path, merged_layer(copy.deepcopy(cast(nn.Module, layer)))
        elif not _inside(path, adapted) and any(True for _ in layer.parameters(recurse=False)):
            yield path, layer


@torch.no_grad()
def merged_weights(model: CausalLM) -> Iterator[tuple[str, Tensor]]:
    """The weights by the names that they have in the Hugging Face model, adapters merged into copies of them."""
    for path, layer in merged_layers(model):
        for name, parameter in layer.named_parameters():
            yield f"{path}.{name}" if path else name, parameter.detach()


def _inside(path: str, layers: dict[str, nn.Module]) -> bool:
    """True for a module within one of these layers."""
    return any(path.startswith(f"{layer}.") for layer in layers)


def shapes_of(model: CausalLM) -> list[tuple[int, int]]:
    """The shapes [out, in] of the weights that a sampling copy lays out anew."""
    adapted = outermost_layers(model.plain)
    plain = [layer for path, layer in model.plain.named_modules() if path not in adapted and not _inside(path, adapted)]
    layers = [*plain, *(bottom for layer in adapted.values() if (bottom := bottom_of(layer)) is not None)]
    weights = (found[0] for layer in layers if (found := weight_and_bias(layer)) is not None)
    return [(int(weight.shape[0]), int(weight.shape[1])) for weight in weights]
