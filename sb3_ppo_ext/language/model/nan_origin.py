"""The place in a language model where a number first is not finite: layer and row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.tokens import Tokens
from sb3_ppo_ext.monitoring.divergence import DivergedError, first_bad


def require_finite(model: CausalLM, tokens: Tokens, **sampled: Tensor) -> None:
    """``DivergedError`` if one of the named tensors [B, L] has a NaN or an infinity, with the layer that gave it."""
    for name, tensor in sampled.items():
        if (bad := first_bad(tensor)) is not None:
            raise DivergedError(
                f"the {name} of row {bad.index[0]}, token {bad.index[1]}, is {bad}: {origin(model, tokens)}"
            )


@torch.no_grad()
def origin(model: CausalLM, tokens: Tokens) -> str:
    """The first layer, in the order of computation, whose output for a token is not finite, and the row."""
    ids, mask = tokens.apart().joined()
    found: list[str] = []

    def examine(name: str) -> Any:
        def hook(layer: nn.Module, _: Any, output: Any) -> None:
            if found or not isinstance(output, Tensor):
                return
            # Nothing reads the numbers of padding.
            read = output.masked_fill(~mask[..., None], 0.0) if output.shape[:2] == mask.shape else output
            if (bad := first_bad(read)) is not None:
                wrong = [key for key, weight in layer.named_parameters() if first_bad(weight) is not None]
                cause = f", whose {wrong[0]} is not finite either" if wrong else ""
                what = f"{name} ({type(layer).__name__}{cause})"
                found.append(f"the first layer to give such a number is {what}, for row {bad.index[0]}")

        return hook

    leaves = [(name, layer) for name, layer in model.plain.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(examine(name)) for name, layer in leaves]
    try:
        model.logits(model.hidden(ids, mask))
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "every layer's output is finite in a pass over the same prompts and responses"
