"""Responses sampled from a causal language model, with the log-probabilities and values that PPO needs of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.end_tokens import EndTokens, end_tokens
from sb3_ppo_ext.language.model.progress import RolloutProgress

SMALLEST = 2.0**-25  # half the step of uniform numbers in float32


class Response(NamedTuple):
    """Sampled responses, all [B, L]; after a response's end ``token`` is the padding id, the others 0 and False."""

    token: Tensor
    mask: Tensor  # up to and including the end-of-text token
    log_prob: Tensor  # in nats, of the distribution the token was drawn from
    value: Tensor  # by ``value_of`` from the state before the token


class Decoder:
    """Draws the tokens of one batch of responses; ``seen`` [B, S] is the mask of its prompts and responses."""

    def __init__(
        self, model: CausalLM, seen: Tensor, value_of: Callable[[Tensor], Tensor] | None, *, deterministic: bool
    ) -> None:
        self.model = model
        self.seen = seen
        self.value_of = value_of
        self.deterministic = deterministic
        self.cache = preallocated_cache(model, seen.shape[1])

    def draw(self, ids: Tensor, until: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """One token [B] after ``ids`` [B, S'], the newest of the first ``until``; its log-probability, and value."""
        hidden = self.model.hidden(ids, self.seen[:, :until], cache=self.cache, first_scored=ids.shape[1] - 1)[:, -1]
        logits = self.model.logits(hidden)
        drawn, log_prob = draw(logits, None if self.deterministic else torch.empty_like(logits).uniform_())
        return drawn, log_prob, None if self.value_of is None else self.value_of(hidden)


@torch.no_grad()
def generate(
    model: CausalLM,
    prompt: Tensor,
    prompt_mask: Tensor,
    *,
    max_new_tokens: int,
    eos_token_id: EndTokens,
    pad_token_id: int,
    value_of: Callable[[Tensor], Tensor] | None = None,
    deterministic: bool = False,
    decoder_of: Callable[..., Decoder] = Decoder,
    progress: RolloutProgress | None = None,
) -> Response:
    """Responses to prompts [B, P] padded on the left, token by token over a key-value cache, until every row has ended.

    Each token is drawn from the full distribution of ``model.logits`` (the likeliest if ``deterministic``), for that is
    the one that is trained. ``value_of`` maps hidden states [B, D] to values [B].
    """
    ids, prompt_mask = trimmed_prompts(prompt, prompt_mask.bool())
    response = empty_response(len(ids), max_new_tokens, pad_token_id, ids.device)
    seen = torch.cat((prompt_mask, torch.ones_like(response.mask)), dim=1)
    decoder = decoder_of(model, seen, value_of, deterministic=deterministic)
    going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    for step in range(max_new_tokens):
        drawn, log_prob, value = decoder.draw(ids, prompt_mask.shape[1] + step)
        response.token[:, step] = torch.where(going, drawn, pad_token_id)
        response.log_prob[:, step] = log_prob.masked_fill(~going, 0.0)
        response.mask[:, step] = going
        if value is not None:
            response.value[:, step] = value.masked_fill(~going, 0.0)
        for end in end_tokens(eos_token_id):
            going = going & (drawn != end)
        if progress is not None:
            progress.after_token(response.mask, going)
        if not going.any():
            break
        ids = drawn[:, None]
    if progress is not None:
        progress.after_batch(response.mask)
    return response


def trimmed_prompts(prompt: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask without the columns on the left that are padding in every row; masked ids are 0."""
    longest = max(int(mask.sum(-1).max()), 1)
    return prompt[:, -longest:].masked_fill(~mask[:, -longest:], 0), mask[:, -longest:]


def empty_response(rows: int, length: int, pad_token_id: int, device: torch.device) -> Response:
    """Responses [rows, length] without a token."""
    zeros = torch.zeros(rows, length, device=device)
    token = torch.full_like(zeros, pad_token_id, dtype=torch.long)
    return Response(token, torch.zeros_like(zeros, dtype=torch.bool), zeros, zeros.clone())


class PreallocatedLayer(DynamicLayer):
    """Keys and values [B, heads, S, D / heads] of ``length`` S from the start: no token copies those before it.

    ``tensors`` is a pair of them to be used; without it they are made for the first token.
    """

    def __init__(self, length: int, tensors: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers'
        self.length = length
        self.tensors = tensors

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the states of new tokens; returns those of all tokens so far, as views."""
        before = self.get_seq_length()
        until = before + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:2], self.length)
            self.all_keys, self.all_values = self.tensors or (
                key_states.new_zeros((*shape, key_states.shape[-1])),
                value_states.new_zeros((*shape, value_states.shape[-1])),
            )
        self.all_keys[:, :, before:until] = key_states
        self.all_values[:, :, before:until] = value_states
        self.keys, self.values = self.all_keys[:, :, :until], self.all_values[:, :, :until]
        return self.keys, self.values


def preallocated_cache(model: CausalLM, length: int) -> DynamicCache:
    """The model's cache for ``length`` tokens; layers that do not attend to all of them stay transformers' own."""
    cache = DynamicCache(config=model.plain.config)
    cache.layers = [PreallocatedLayer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def draw(logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token [B] from each row of ``logits`` [B, V], and its log-probability [B]; without ``noise`` the likeliest.

    ``noise`` is uniform on [0, 1): then -log(noise) is Exp(1), and p / Exp(1) is largest for v with probability p_v.
    torch.multinomial runs the same race for one draw, but its ``exponential_()`` takes 6 times as long on a CPU.
    """
    log_p = logits.log_softmax(dim=-1)
    # Noise of 0 would leave a token that is certain no chance.
    race = log_p if noise is None else log_p.exp() / -noise.clamp(min=SMALLEST).log()
    token = race.argmax(dim=-1)
    return token, log_p.gather(-1, token[:, None])[:, 0]
