"""The keys and values of the tokens so far. Letters: see ``causal_lm``."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sb3_ppo_ext.language.model.causal_lm import CausalLM


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
        return self.show(until)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Goes on with the rows ``indices`` [B'], in which a row may occur several times."""
        self.all_keys, self.all_values = self.all_keys[indices], self.all_values[indices]
        self.show(self.get_seq_length())

    def show(self, until: int) -> tuple[Tensor, Tensor]:
        """The states of the first ``until`` tokens, as views; those after them do not count."""
        self.keys, self.values = keys, values = self.all_keys[:, :, :until], self.all_values[:, :, :until]
        return keys, values


def preallocated_cache(model: CausalLM, length: int) -> DynamicCache:
    """The model's cache for ``length`` tokens; layers that do not attend to all of them stay transformers' own."""
    cache = DynamicCache(config=model.plain.config)
    cache.layers = [PreallocatedLayer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Goes on with the ``rows`` [B'] of the cache, in which a row may occur several times."""
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        layer.batch_select_indices(rows)


def selects_rows(cache: DynamicCache) -> bool:
    """True where ``select_rows`` works for every layer; layers with a recurrent state are left as they are."""
    return all(isinstance(layer, DynamicLayer) for layer in cache.layers)
