"""Places for the value function: on the policy's own hidden states, on a branch of its last block, apart, or none.

Every head begins at zero: a random one would be noise in the first advantages (Ziegler et al. 2019's code does so).
"""

from __future__ import annotations

import copy
from typing import Any, Protocol, cast

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from sb3_ppo_ext.language.inputs import one_of
from sb3_ppo_ext.language.model.adapters import adapted
from sb3_ppo_ext.language.model.causal_lm import BLOCKS, CausalLM, skip_prompt_in_last_mlp, widened
from sb3_ppo_ext.language.model.tokens import PLAIN_ROWS, RowLayout, positions

CRITICS = ("shared", "branch", "separate", "none")
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


class Critic(Protocol):
    """Values for every token of a row; those before ``layout.first_scored``, which nothing reads, may be anything."""

    def states(
        self, model: CausalLM, ids: Tensor, mask: Tensor, layout: RowLayout = PLAIN_ROWS
    ) -> tuple[Tensor, Tensor]:
        """The policy's hidden states [G, S, D], and the values [G, S] in reward units after each token."""
        ...

    def values(self, model: CausalLM, ids: Tensor, mask: Tensor, layout: RowLayout = PLAIN_ROWS) -> Tensor:
        """The values alone."""
        ...


def value_head(size: int) -> nn.Linear:
    """A linear head in float32 whatever the model's precision, at zero."""
    head = nn.Linear(size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class SharedCritic(nn.Module):
    """A head on the policy's final hidden states: costs nothing beyond them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.head = value_head(size)

    def of_hidden(self, hidden: Tensor) -> Tensor:
        """Values [...] of hidden states [..., D]."""
        values: Tensor = self.head(widened(hidden))
        return values.squeeze(-1)

    def states(
        self, model: CausalLM, ids: Tensor, mask: Tensor, layout: RowLayout = PLAIN_ROWS
    ) -> tuple[Tensor, Tensor]:
        """The policy's hidden states [G, S, D], and the values [G, S] after each token."""
        hidden = model.hidden(ids, mask, layout)
        return hidden, self.of_hidden(hidden)

    def values(self, model: CausalLM, ids: Tensor, mask: Tensor, layout: RowLayout = PLAIN_ROWS) -> Tensor:
        """The values [G, S] after each token."""
        return self.of_hidden(model.hidden(ids, mask, layout))


class BranchCritic(nn.Module):
    """A copy of the last block and norm, on the input of the policy's last block, and a head.

    The value branch of trlX, one block deep: it learns its own last step without disturbing the policy's.
    """

    def __init__(self, model: CausalLM, size: int) -> None:
        super().__init__()
        block, norm = last_block(model.trunk), final_norm(model.trunk)
        self.block, self.norm = copy.deepcopy(block), copy.deepcopy(norm)
        self.head = value_head(size)

    def states(
        self, model: CausalLM, ids: Tensor, mask: Tensor, layout: RowLayout = PLAIN_ROWS
    ) -> tuple[Tensor, Tensor]:
        """The policy's hidden states [G, S, D], and the values [G, S] after each token."""
        inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        block = last_block(model.trunk)
        hook = block.register_forward_pre_hook(
            lambda _, args, kwargs: inputs.append((args, dict(kwargs))), with_kwargs=True
        )
        try:
            hidden = model.hidden(ids, mask, layout)
        finally:
            hook.remove()
        args, kwargs = inputs[0]
        with model.computing():
            output = self.block(*args, **kwargs)
        branch = output[0] if isinstance(output, tuple) else output
        values: Tensor = self.head(widened(self.norm(branch)))
        return hidden, values.squeeze(-1)

    def values(self, model: CausalLM, ids: Tensor, mask: Tensor, layout: RowLayout = PLAIN_ROWS) -> Tensor:
        """The values [G, S] after each token."""
        return self.states(model, ids, mask, layout)[1]


class SeparateCritic(nn.Module):
    """A second model under its own head: twice the work, and no interference. With LoRA it has its own adapter."""

    def __init__(self, trunk: PreTrainedModel, size: int, lora: LoraConfig | None) -> None:
        super().__init__()
        self.trunk = trunk if lora is None else adapted(trunk, lora)
        self.head = value_head(size)

    def states(
        self, model: CausalLM, ids: Tensor, mask: Tensor, layout: RowLayout = PLAIN_ROWS
    ) -> tuple[Tensor, Tensor]:
        """The policy's hidden states [G, S, D], and the values [G, S] after each token."""
        return model.hidden(ids, mask, layout), self.values(model, ids, mask, layout)

    def values(self, model: CausalLM, ids: Tensor, mask: Tensor, layout: RowLayout = PLAIN_ROWS) -> Tensor:
        """The values [G, S] after each token."""
        attended = model.attention_mask(mask, ids.shape[1], layout)
        places = positions(mask, layout)
        plain = self.trunk.get_base_model() if isinstance(self.trunk, PeftModel) else self.trunk
        with skip_prompt_in_last_mlp(plain, layout.first_scored), model.computing():
            output = self.trunk(input_ids=ids, attention_mask=attended, position_ids=places, use_cache=False)
        values: Tensor = self.head(widened(output.last_hidden_state))
        return values.squeeze(-1)


class NoCritic(nn.Module):
    """No value function, for advantages that are relative to a group: all values are 0, and nothing is trained."""

    def states(
        self, model: CausalLM, ids: Tensor, mask: Tensor, layout: RowLayout = PLAIN_ROWS
    ) -> tuple[Tensor, Tensor]:
        """The policy's hidden states [G, S, D], and zeros [G, S]."""
        return model.hidden(ids, mask, layout), self.values(model, ids, mask, layout)

    def values(self, model: CausalLM, ids: Tensor, mask: Tensor, layout: RowLayout = PLAIN_ROWS) -> Tensor:
        """Zeros [G, S]."""
        return torch.zeros(ids.shape, device=ids.device)


def last_block(trunk: nn.Module) -> nn.Module:
    """The last transformer block; ``ValueError`` where the model keeps its blocks elsewhere."""
    for name in BLOCKS:
        if isinstance(blocks := getattr(trunk, name, None), nn.ModuleList):
            return blocks[-1]
    raise ValueError(
        f'value="branch": {type(trunk).__name__} has no list of blocks named {" or ".join(BLOCKS)}; '
        'pass value="shared" or "separate"'
    )


def final_norm(trunk: nn.Module) -> nn.Module:
    """The norm after the last block."""
    for name in FINAL_NORMS:
        if isinstance(norm := getattr(trunk, name, None), nn.Module):
            return norm
    raise ValueError(
        f'value="branch": {type(trunk).__name__} has no final norm named {", ".join(FINAL_NORMS)}; '
        'pass value="shared" or "separate"'
    )


def build_critic(
    kind: str, model: CausalLM, trunk: PreTrainedModel | None, lora: LoraConfig | None
) -> SharedCritic | BranchCritic | SeparateCritic | NoCritic:
    """The critic of that ``kind``; a separate one takes ``trunk``, a copy of the model's from before the adapter."""
    one_of(CRITICS, "value", kind)
    if kind == "none":
        return NoCritic()
    weight = cast(nn.Linear, model.plain.get_output_embeddings()).weight
    size, device = int(weight.shape[1]), weight.device
    if kind == "shared":
        return SharedCritic(size).to(device)
    if kind == "branch":
        return BranchCritic(model, size).to(device)
    assert trunk is not None
    return SeparateCritic(trunk, size, lora).to(device)
