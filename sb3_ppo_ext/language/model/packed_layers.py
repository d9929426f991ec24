"""Linear layers for sampling alone: weights in another precision, laid out for the processor where that is faster.

oneDNN's products read weights in an order of their own, in which a product of few rows takes half of the time and less.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from sb3_ppo_ext.host.pytorch.layouts import has_packed_products, pack_weight, packed_linear

ROUNDS = 5  # of the probe; the fastest counts, for other programs can only slow one down
SCORED_AT_ONCE = 256  # states of the probe of a pass over whole sequences
REQUIRED_GAIN = 0.95


class Layout(NamedTuple):
    """How the weights of a sampling copy are kept."""

    dtype: torch.dtype
    packed: bool

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{', packed' if self.packed else ''}"


class SamplingLinear(nn.Module):
    """A linear layer without a gradient: inputs and results keep their precision, the product has that of the layout.

    The weight's own precision stays that of the residual stream, norms, attention and logits.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, layout: Layout, rows: int) -> None:
        super().__init__()
        self.layout = layout
        self.rows = rows  # of the products to come, which the order of the weights depends on
        self.register_buffer("weight", None, persistent=False)
        self.register_buffer("bias", None, persistent=False)

    @torch.no_grad()
    def load(self, weight: Tensor, bias: Tensor | None) -> None:
        """Takes a weight [out, in] and a bias [out], and leaves both as they are."""
        self.shape = tuple(weight.shape)
        weight = weight.detach().to(self.layout.dtype)
        self.weight = pack_weight(weight, self.rows) if self.layout.packed else weight
        self.bias = None if bias is None else bias.detach().to(self.layout.dtype)

    def forward(self, states: Tensor) -> Tensor:
        """``states @ weight.T + bias`` in the type of the states [..., in]."""
        assert self.weight is not None
        product = packed_linear if self.layout.packed else linear
        result: Tensor = product(states.to(self.layout.dtype), self.weight, self.bias)
        return result.to(states.dtype)


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """The weight [out, in] and bias of a linear layer; None for a layer of another kind."""
    if isinstance(layer, Conv1D):  # GPT-2's, which keeps it transposed
        return layer.weight.t(), layer.bias
    return (layer.weight, layer.bias) if type(layer) is nn.Linear else None


def layouts_of(dtype: torch.dtype, chosen: torch.dtype | None) -> list[Layout]:
    """The layouts for a model that computes in ``dtype``: in the ``chosen`` precision, or in any that is not finer."""
    dtypes = dict.fromkeys((dtype, torch.bfloat16)) if chosen is None else (chosen,)
    kinds = {each: (False, True) if has_packed_products(each) else (False,) for each in dtypes}
    return [Layout(each, packed) for each, packs in kinds.items() for packed in packs]


def fastest_layout(
    own: Layout,
    chosen: torch.dtype | None,
    shapes: list[tuple[int, int]],
    head: tuple[int, int],
    *,
    rows: int,
    steps: int,
    scored: int,
) -> Layout:
    """The layout in which a rollout of ``steps`` tokens of ``rows`` responses is fastest here and now.

    A copy in another precision than the model's ``own`` layout has also the cost of computing the log-probabilities
    again, in a pass over ``scored`` states. ``own`` stays unless another takes 5 % less. ``shapes`` are those of the
    weights but the ``head``, which stays in the model's precision.
    """
    scoring = seconds_per_pass(own, shapes, SCORED_AT_ONCE) * scored / SCORED_AT_ONCE

    def seconds(layout: Layout) -> float:
        of_head = seconds_per_pass(Layout(own.dtype, layout.packed), [head], rows)
        of_token = seconds_per_pass(layout, shapes, rows) + of_head
        return steps * of_token + (scoring if layout.dtype != own.dtype else 0.0)

    found = {layout: seconds(layout) for layout in layouts_of(own.dtype, chosen)}
    best = min(found, key=lambda layout: found[layout])
    return own if own in found and found[best] > REQUIRED_GAIN * found[own] else best


@torch.no_grad()
def seconds_per_pass(layout: Layout, shapes: Iterable[tuple[int, int]], rows: int) -> float:
    """Seconds of the products of ``rows`` states with weights of these ``shapes`` [out, in], measured here and now."""
    seconds = 0.0
    for (out, size), count in Counter(shapes).items():
        layers = [SamplingLinear(layout, rows) for _ in range(min(count, 4))]  # not one, which a cache would hold
        for layer in layers:
            layer.load(torch.ones(out, size), None)
        states, fastest = torch.ones(rows, size), float("inf")
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for layer in layers:
                layer(states)
            fastest = min(fastest, time.perf_counter() - started)
        seconds += fastest * count / len(layers)
    return seconds
