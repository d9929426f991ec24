"""Nested containers of tensors: dicts, lists, tuples and named tuples.

Assumed: ``torch.utils._pytree`` has these functions, takes named tuples apart, and keeps the order of a dict's keys.
"""

from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_leaves, tree_map, tree_unflatten

__all__ = ["tree_flatten", "tree_flatten_with_path", "tree_leaves", "tree_map", "tree_unflatten"]
