"""The Hugging Face model that a generator runs: the layers of the trained one, without adapters, and its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from sb3_ppo_ext.language.model.adapters import bottom_of, outermost_layers
from sb3_ppo_ext.language.model.causal_lm import CausalLM


def plain_structure(model: CausalLM) -> PreTrainedModel:
    """The model once more with the very tensors of the trained one, and the plain layers where that has adapters.

    It is complete with its first ``take_weights``; before, adapters are missing.
    """
    shared = {id(tensor): tensor for tensor in (*model.plain.parameters(), *model.plain.buffers())}
    plain = copy.deepcopy(model.plain, shared)
    for path, layer in outermost_layers(plain).items():
        above, _, name = path.rpartition(".")
        setattr(plain.get_submodule(above), name, bottom_of(layer))
    take_weights(plain, ((name, weight.detach()) for name, weight in plain.named_parameters(remove_duplicate=False)))
    plain.eval()
    return plain


def take_weights(plain: PreTrainedModel, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Makes the ``weights`` those of the structure, without a copy and without gradients."""
    named = dict(weights)
    missing = {name for name, _ in plain.named_parameters(remove_duplicate=False)} - named.keys()
    unknown = named.keys() - plain.state_dict().keys()
    if missing or unknown:
        raise ValueError(f"weights {sorted(missing)} are missing, and there is no place for {sorted(unknown)}")
    plain.load_state_dict(named, strict=False, assign=True)
    device = next(iter(named.values())).device
    cast(nn.Module, plain).to(device)  # its buffers, of a policy that was moved after it was made
    for parameter in plain.parameters():  # new ones: those of the trained model keep their gradients
        parameter.requires_grad_(False)
