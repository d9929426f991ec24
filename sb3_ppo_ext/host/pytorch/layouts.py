"""oneDNN's products with weights in an order of its own, as inductor calls them for frozen graphs."""

from __future__ import annotations

import torch
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16)


def has_packed_products(dtype: torch.dtype) -> bool:
    """True where torch is built with oneDNN, and that computes in ``dtype`` on this processor.

    ``mkldnn::_reorder_linear_weight`` and ``mkldnn::_linear_pointwise`` are private operations of torch 2.1 to 2.13.
    """
    if dtype not in TYPES or not torch.backends.mkldnn.is_available():
        return False
    operations = torch.ops.mkldnn
    if not all(hasattr(operations, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    return dtype is torch.float32 or bool(operations._is_mkldnn_bf16_supported())


def pack_weight(weight: Tensor, rows: int) -> Tensor:
    """The weight [out, in] in the order that suits products of ``rows`` rows; only ``packed_linear`` reads it."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    return packed


def packed_linear(states: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """``states @ weight.T + bias`` for states [..., in] and a weight of ``pack_weight``."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")
    return result
