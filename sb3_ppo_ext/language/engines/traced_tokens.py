"""A language model's gradient and its drawing of one token as functions of tensors, to be traced and compiled.

Letters as in ``tokens``. Shapes are fixed: every slot is computed, padding included, under the mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.substitution import substituted, write_assigned
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.host.pytorch.modules import has_gradient_hooks
from sb3_ppo_ext.language.model.cache import PreallocatedLayer
from sb3_ppo_ext.language.model.critics import SeparateCritic, SharedCritic
from sb3_ppo_ext.language.model.drawing import draw
from sb3_ppo_ext.language.model.tokens import prepared_mask
from sb3_ppo_ext.language.training.token_update import TokenAdapter
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.terms import KnobValues, Objective
from sb3_ppo_ext.update.step import loss_and_statistics

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy

COMPILED_DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16)}  # by type of device

# Up to so many slots the operations of attention, fused with those around them, are faster than the kernel for it.
EAGER_ATTENTION_SLOTS = 128


def require_traceable(policy: LanguageModelPolicy) -> None:
    """``CompileError`` with the reason where a graph cannot stand for the model."""
    plain = policy.lm.plain
    name = type(plain).__name__
    dtypes = COMPILED_DTYPES.get(policy.device.type)
    if dtypes is None:
        raise CompileError(
            f"the device is {policy.device}; language models are compiled on {' and '.join(COMPILED_DTYPES)}"
        )
    if plain.dtype not in dtypes:
        compiled = " and ".join(map(_named, dtypes))
        raise CompileError(f"{name} computes in {_named(plain.dtype)}; {compiled} is compiled on {policy.device.type}")
    if plain.config._attn_implementation != "sdpa":
        raise CompileError(f'{name} computes attention by {plain.config._attn_implementation!r}; "sdpa" is compiled')
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=plain.config).layers):
        raise CompileError(f"{name} has layers that do not attend to all tokens")
    if any(map(has_gradient_hooks, policy.parameters())):
        raise CompileError("a parameter of the policy has a hook on its gradient")


def require_one_precision(policy: LanguageModelPolicy) -> None:
    """``CompileError`` where products have another precision than the weights, which graphs of blocks alone have."""
    dtype, computed = policy.lm.plain.dtype, policy.lm.compute_dtype
    if computed is not None:
        name = type(policy.lm.plain).__name__
        raise CompileError(f"{name} computes in {_named(computed)} over weights in {_named(dtype)}")


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def constants_of(policy: LanguageModelPolicy) -> dict[str, Tensor]:
    """The tensors that a gradient leaves alone, by name: frozen parameters and buffers, the reference's copy aside."""
    frozen = {name: tensor.detach() for name, tensor in policy.named_parameters() if not tensor.requires_grad}
    named = {**frozen, **dict(policy.named_buffers())}
    return {name: tensor for name, tensor in named.items() if not of_reference(name)}


def trained_of(policy: LanguageModelPolicy) -> dict[str, nn.Parameter]:
    """The trainable parameters by name."""
    named = dict(policy.named_parameters())
    return {name: tensor for name, tensor in named.items() if tensor.requires_grad and not of_reference(name)}


def of_reference(name: str) -> bool:
    """True for the name of a tensor of the reference's frozen copy."""
    return name.startswith("reference.")


def weights_of(policy: LanguageModelPolicy) -> dict[str, Tensor]:
    """The tensors that drawing reads, by name: all but the reference's copy."""
    trained = {name: parameter.detach() for name, parameter in trained_of(policy).items()}
    return {**trained, **constants_of(policy)}


def uses_eager_attention(policy: LanguageModelPolicy) -> bool:
    """True where graphs have the operations of attention in them, and not a call of the kernel for it."""
    return policy.prompt_length + policy.responses.max_new_tokens <= EAGER_ATTENTION_SLOTS


@contextmanager
def traceable(
    policy: LanguageModelPolicy, tensors: dict[str, Tensor], prepared: Tensor | None = None
) -> Iterator[None]:
    """The policy computing with other tensors than its own, and without reading masks, until the end of the block."""
    lm, critic = policy.lm, policy.critic
    trunks = [lm.trunk, critic.trunk] if isinstance(critic, SeparateCritic) else [lm.trunk]
    lm.prepares_mask, lm.prepared = True, prepared
    try:
        for trunk in trunks:
            trunk.config._attn_implementation = "eager" if uses_eager_attention(policy) else "sdpa"
        with substituted(policy, tensors) as assigned:
            yield
        write_assigned(assigned)
    finally:
        lm.prepares_mask, lm.prepared = False, None
        for trunk in trunks:
            trunk.config._attn_implementation = "sdpa"


def prepared_for(policy: LanguageModelPolicy, minibatch: Minibatch) -> Tensor:
    """The attention mask of a micro-batch, made before its graph, in which every layer would make it anew."""
    assert minibatch.mask is not None
    tokens = policy.tokens(minibatch.observation, minibatch.action, minibatch.mask > 0)
    ids, mask = tokens.joined()
    added_in = policy.lm.plain.dtype if uses_eager_attention(policy) else None
    return prepared_mask(mask, ids.shape[1], added_in, tokens.layout)


class TokenGradient:
    """The statistics and the gradient of one micro-batch, every slot computed."""

    def __init__(self, adapter: TokenAdapter, objective: Objective) -> None:
        self.adapter = replace(adapter, every_slot=True)
        self.objective = objective

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """The row of the statistics, and the gradient parameter by parameter."""
        rows, knobs = inputs["rows"], KnobValues(**inputs["knobs"])
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs["parameters"].items()}
        tensors = {**leaves, **inputs["constants"]}
        with torch.enable_grad(), traceable(self.adapter.policy, tensors, inputs["prepared"]):
            evaluated, found = loss_and_statistics(self.adapter, rows, self.objective, knobs, share=inputs["share"])
            gradients = gradients_of(evaluated.loss, leaves)
        return (found.row(), *gradients)


def gradients_of(loss: Tensor, leaves: dict[str, Tensor], direction: Tensor | None = None) -> list[Tensor]:
    """The gradients of ``leaves``, along a direction where the loss is no single number.

    ``CompileError`` for a leaf without, which zeros would let Adam's momentum move.
    """
    gradients = torch.autograd.grad(loss, list(leaves.values()), direction, allow_unused=True)
    for name, gradient in zip(leaves, gradients, strict=True):
        if gradient is None:
            raise CompileError(f"the loss does not depend on {name}")
    return list(gradients)


class IndexedCacheLayer(DynamicLayer):
    """The cache of one layer: tensors [B, heads, S, D / heads] made beforehand, of which ``slot`` is written."""

    def __init__(self, keys: Tensor, values: Tensor, slot: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers'
        self.keys, self.values, self.slot = keys, values, slot.reshape(1)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes one token; returns all slots, of which the mask excludes the empty ones."""
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        return self.keys, self.values


def draw_inputs(policy: LanguageModelPolicy, layers: list[PreallocatedLayer], **rest: Tensor) -> Inputs:
    """The inputs of ``TokenDraw`` over the cache of ``layers``, with ``rest``: ``seen, token, slot, noise``."""
    keys, values = [layer.all_keys for layer in layers], [layer.all_values for layer in layers]
    return {"constants": weights_of(policy), "keys": keys, "values": values, **rest}


class TokenDraw:
    """The next token [B], its log-probability, and its value where the critic shares the model's states."""

    def __init__(self, policy: LanguageModelPolicy) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Writes ``token`` [B] at ``slot`` of the cache and draws the next; ``noise`` [B] is that of ``draw``."""
        policy, seen, slot = self.policy, inputs["seen"], inputs["slot"]
        cache = DynamicCache(config=policy.lm.plain.config)
        pairs = zip(inputs["keys"], inputs["values"], strict=True)
        cache.layers = [IndexedCacheLayer(keys, values, slot) for keys, values in pairs]
        with traceable(policy, inputs["constants"]):
            mask = seen & (torch.arange(seen.shape[1], device=seen.device) <= slot)
            hidden = policy.lm.hidden(inputs["token"][:, None], mask, cache=cache)[:, -1]
            drawn, log_prob = draw(policy.lm.logits(hidden), inputs["noise"])
            if not isinstance(policy.critic, SharedCritic):
                return drawn, log_prob
            return drawn, log_prob, policy.critic.of_hidden(hidden)
