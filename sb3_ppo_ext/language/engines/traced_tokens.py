"""A language model's gradient and its drawing of one token as functions of tensors, to be traced and compiled.

Letters as in model. Shapes are fixed: every slot is computed, padding included, and the mask says what counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.substitution import substituted, write_assigned
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.host.pytorch.modules import has_gradient_hooks
from sb3_ppo_ext.language.model.causal_lm import before_response, prepared_mask
from sb3_ppo_ext.language.model.critics import SeparateCritic, SharedCritic
from sb3_ppo_ext.language.model.generation import RoomyLayer, draw
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.terms import KnobValues, Objective
from sb3_ppo_ext.update.step import loss_and_statistics

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy

DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16)}  # that are compiled, by type of device

# Up to here attention written out is faster than the kernel for it, once its parts are fused with what is around them.
WRITTEN_OUT = 128  # slots


def require_traceable(policy: LanguageModelPolicy) -> None:
    """``CompileError`` with the reason where a graph cannot stand for the model."""
    plain = policy.lm.plain
    name = type(plain).__name__
    dtypes = DTYPES.get(policy.device.type)
    if dtypes is None:
        raise CompileError(f"the device is {policy.device}; language models are compiled on {' and '.join(DTYPES)}")
    if plain.dtype not in dtypes:
        compiled = " and ".join(map(_named, dtypes))
        raise CompileError(f"{name} computes in {_named(plain.dtype)}; {compiled} is compiled on {policy.device.type}")
    if plain.config._attn_implementation != "sdpa":
        raise CompileError(f'{name} computes attention by {plain.config._attn_implementation!r}; "sdpa" is compiled')
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=plain.config).layers):
        raise CompileError(f"{name} has layers that do not attend to all tokens")
    if any(map(has_gradient_hooks, policy.parameters())):
        raise CompileError("a parameter of the policy has a hook on its gradient")


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def constants_of(policy: LanguageModelPolicy) -> dict[str, Tensor]:
    """What a gradient leaves alone: frozen parameters and buffers; the reference's copy is not asked."""
    frozen = {name: one.detach() for name, one in policy.named_parameters() if not one.requires_grad}
    return {name: one for name, one in {**frozen, **dict(policy.named_buffers())}.items() if not of_reference(name)}


def trained_of(policy: LanguageModelPolicy) -> dict[str, nn.Parameter]:
    """The trainable parameters by name."""
    named = dict(policy.named_parameters())
    return {name: one for name, one in named.items() if one.requires_grad and not of_reference(name)}


def of_reference(name: str) -> bool:
    """Whether a tensor of that name belongs to the frozen copy."""
    return name.startswith("reference.")


def weights_of(policy: LanguageModelPolicy) -> dict[str, Tensor]:
    """Everything but the reference's copy: what drawing reads and leaves alone."""
    trained = {name: parameter.detach() for name, parameter in trained_of(policy).items()}
    return {**trained, **constants_of(policy)}


def written_out(policy: LanguageModelPolicy) -> bool:
    """Whether graphs have the operations of attention in them, or a call of the kernel for it."""
    return policy.prompt_length + policy.responses.max_new_tokens <= WRITTEN_OUT


@contextmanager
def in_a_graph(
    policy: LanguageModelPolicy, tensors: dict[str, Tensor], prepared: Tensor | None = None
) -> Iterator[None]:
    """The policy with other tensors for its own, and not looking into masks, until the end of the block."""
    lm, critic = policy.lm, policy.critic
    trunks = [lm.trunk, critic.trunk] if isinstance(critic, SeparateCritic) else [lm.trunk]
    lm.prepares_mask, lm.prepared = True, prepared
    try:
        for trunk in trunks:
            trunk.config._attn_implementation = "eager" if written_out(policy) else "sdpa"
        with substituted(policy, tensors) as assigned:
            yield
        write_assigned(assigned)
    finally:
        lm.prepares_mask, lm.prepared = False, None
        for trunk in trunks:
            trunk.config._attn_implementation = "sdpa"


def prepared_for(policy: LanguageModelPolicy, part: Minibatch) -> Tensor:
    """The attention mask of a micro-batch, made before its graph, in which every layer would make it anew."""
    assert part.mask is not None
    ids, mask = policy.tokens(part.observation, part.action, part.mask > 0).joined()
    return prepared_mask(mask, ids.shape[1], policy.lm.plain.dtype if written_out(policy) else None)


class TokenGradient:
    """Statistics and gradient of one micro-batch; it is the adapter of its own evaluation, of every slot [B, L]."""

    def __init__(self, policy: LanguageModelPolicy, objective: Objective, *, entropy_grad: bool) -> None:
        self.policy = policy
        self.objective = objective
        self.entropy_grad = entropy_grad

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """The row of the statistics, and the gradient parameter by parameter."""
        part: Minibatch = inputs["part"]
        knobs = KnobValues(**inputs["knobs"])
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs["parameters"].items()}
        with torch.enable_grad(), in_a_graph(self.policy, {**leaves, **inputs["constants"]}, inputs["prepared"]):
            evaluated, found = loss_and_statistics(self, part, self.objective, knobs, share=inputs["share"])
            gradients = gradients_of(evaluated.loss, leaves)
        return (found.row(), *gradients)

    def evaluate(self, minibatch: Minibatch) -> Evaluation:
        """As ``TokenAdapter`` does it."""
        assert minibatch.mask is not None
        policy, lm = self.policy, self.policy.lm
        tokens = policy.tokens(minibatch.observation, minibatch.action, minibatch.mask > 0)
        ids, mask = tokens.joined()
        hidden, value = self.states(ids, mask, tokens.first)
        hidden = before_response(hidden, tokens.prompt.shape[1])
        chosen = tokens.response.masked_fill(~tokens.mask, 0).flatten()
        every = lm.log_prob_and_entropy(hidden.flatten(0, 1), chosen, entropy_grad=self.entropy_grad)
        log_prob, entropy = (numbers.view(tokens.mask.shape).masked_fill(~tokens.mask, 0.0) for numbers in every)
        # Without values the old ones stand in, which nothing that is computed of them then depends on.
        value = minibatch.state_value if value is None else before_response(value, tokens.prompt.shape[1])
        value = value.masked_fill(~tokens.mask, 0.0)
        return Evaluation(log_prob, entropy, value, mask=minibatch.mask, ref_log_prob=minibatch.ref_log_prob)

    def states(self, ids: Tensor, mask: Tensor, first: int) -> tuple[Tensor, Tensor | None]:
        """Hidden states [B, S, D] and values [B, S] after every token."""
        return self.policy.critic.states(self.policy.lm, ids, mask, first)


def gradients_of(loss: Tensor, leaves: dict[str, Tensor]) -> list[Tensor]:
    """One for each; ``CompileError`` where there is none, for zeros in its place would let Adam's momentum move it."""
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    for name, gradient in zip(leaves, gradients, strict=True):
        if gradient is None:
            raise CompileError(f"the loss does not depend on {name}")
    return list(gradients)


class WrittenLayer(DynamicLayer):
    """The cache of one layer, written at ``slot`` in tensors [B, heads, S, D / heads] that are there already."""

    def __init__(self, keys: Tensor, values: Tensor, slot: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers'
        self.keys, self.values, self.slot = keys, values, slot.reshape(1)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes in one token; all slots, which the mask tells apart."""
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        return self.keys, self.values


def draw_inputs(policy: LanguageModelPolicy, layers: list[RoomyLayer], **rest: Tensor) -> Inputs:
    """Of ``TokenDraw``, over the cache of ``layers``; ``rest`` are ``seen``, ``token``, ``slot`` and ``noise``."""
    keys, values = [layer.all_keys for layer in layers], [layer.all_values for layer in layers]
    return {"constants": weights_of(policy), "keys": keys, "values": values, **rest}


class TokenDraw:
    """One token [B] after another, its log-probability, and its value where the critic shares the model's states."""

    def __init__(self, policy: LanguageModelPolicy) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Of ``token`` [B] at ``slot`` of the cache; ``noise`` [B, V] as ``draw`` takes it."""
        policy, seen, slot = self.policy, inputs["seen"], inputs["slot"]
        cache = DynamicCache(config=policy.lm.plain.config)
        pairs = zip(inputs["keys"], inputs["values"], strict=True)
        cache.layers = [WrittenLayer(keys, values, slot) for keys, values in pairs]
        with in_a_graph(policy, inputs["constants"]):
            known = seen & (torch.arange(seen.shape[1], device=seen.device) <= slot)
            hidden = policy.lm.hidden(inputs["token"][:, None], known, cache=cache)[:, -1]
            drawn, log_prob = draw(policy.lm.logits(hidden), inputs["noise"])
            if not isinstance(policy.critic, SharedCritic):
                return drawn, log_prob
            return drawn, log_prob, policy.critic.of_hidden(hidden)
