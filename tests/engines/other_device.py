"""Tensors of another device, which hold no numbers: among fake tensors "meta" is a device like any other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

ELSEWHERE = "meta"


def elsewhere(tree: Any) -> Any:
    """The same shapes and types on the other device; within a FakeTensorMode."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=ELSEWHERE)

    return pytree.tree_map(moved, tree)
