"""Other tensors in place of a policy's parameters and buffers, and what its code writes to them.

Writing to a buffer in place is an operation like any other. A buffer that is assigned is written to by the graph at its
end, so the tensors that a graph was made with have to stay the policy's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.host.pytorch.graphs import result_of, updates_batch_statistics, written_by
from sb3_ppo_ext.host.pytorch.modules import buffer_table, parameter_table, storage_id

IN_PLACE = "write to a buffer by self.name.copy_(...)"


class Substitute(NamedTuple):
    """An entry of a module's table of parameters or buffers in which ``other`` stands for ``tensor``."""

    name: str
    table: dict[str, Any]
    key: str
    tensor: Tensor
    other: Tensor
    storage: int  # of ``other``


@contextmanager
def substituted(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """``module`` with other tensors for its parameters and buffers, by name, until the end of the block.

    Afterwards the yielded list has every buffer that was assigned in the block: the tensor that stood for it, and its
    new value. Parameters and ``.data`` that were assigned are a ``CompileError``.

    Not ``torch.func.functional_call``: a feature extractor that actor and critic share is registered under three names,
    and that function then leaves the other tensors in the module.
    """
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    other = {id(named[name]): tensor for name, tensor in tensors.items()}
    substitutes = [
        Substitute(f"{prefix}.{key}".lstrip("."), table, key, tensor, other[id(tensor)], storage_id(other[id(tensor)]))
        for prefix, submodule in module.named_modules()
        for table in (parameter_table(submodule), buffer_table(submodule))
        for key, tensor in table.items()
        if id(tensor) in other
    ]
    assigned: list[tuple[Tensor, Tensor]] = []
    try:
        for entry in substitutes:
            entry.table[entry.key] = entry.other
        yield assigned
        assigned += [(entry.other, _new_value(entry, substitutes)) for entry in substitutes if _is_assigned(entry)]
    finally:
        for entry in substitutes:
            entry.table[entry.key] = entry.tensor


def _is_assigned(entry: Substitute) -> bool:
    if storage_id(entry.other) != entry.storage:
        raise CompileError(f"the policy's forward pass assigns {entry.name}.data, which no graph sees; {IN_PLACE}")
    return entry.table.get(entry.key) is not entry.other


def _new_value(entry: Substitute, substitutes: list[Substitute]) -> Tensor:
    new: Any = entry.table.get(entry.key)
    tensors = isinstance(new, Tensor) and not isinstance(entry.tensor, nn.Parameter)
    alone = sum(another.tensor is entry.tensor for another in substitutes) == 1
    if not tensors or not alone or new.requires_grad or not alike(new, entry.other):
        raise CompileError(f"the policy's forward pass assigns {entry.name}, which no graph can carry on; {IN_PLACE}")
    value: Tensor = new
    return value


def alike(first: Tensor, second: Tensor) -> bool:
    """Whether the tensors have the same shape, type and device."""
    return (first.shape, first.dtype, first.device) == (second.shape, second.dtype, second.device)


@torch.no_grad()
def write_assigned(assigned: list[tuple[Tensor, Tensor]]) -> None:
    """Writes what was assigned to buffers into the tensors that stood for them, which no computation needs any more."""
    values = [new.clone() for _, new in assigned]  # a new value may be the tensor that stands for another buffer
    for (tensor, _), value in zip(assigned, values, strict=True):
        tensor.copy_(value)


class WrittenBuffers:
    """The buffers that a graph writes to, by name, where eager passes may assign other tensors to them."""

    def __init__(self, policy: nn.Module, names: tuple[str, ...]) -> None:
        written = {id(tensor) for name, tensor in policy.named_buffers() if name in names}
        self._entries = [
            (buffer_table(module), key, tensor)
            for module in policy.modules()
            for key, tensor in buffer_table(module).items()
            if tensor is not None and id(tensor) in written
        ]

    def restore(self) -> None:
        """Puts the graph's tensors back into the policy, with the policy's values; before each call of the graph."""
        if moved := [entry for entry in self._entries if entry[0][entry[1]] is not entry[2]]:
            values = [table[key].clone() for table, key, _ in moved]
            for (table, key, tensor), value in zip(moved, values, strict=True):
                table[key] = tensor.copy_(value)


def written_constants(traced: fx.GraphModule, inputs: Inputs) -> tuple[str, ...]:
    """Names of the parameters and buffers among ``inputs["constants"]`` that the graph writes to."""
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    paths: list[Any] = [path for path, leaf in trees.tree_flatten_with_path(inputs)[0] if isinstance(leaf, Tensor)]
    names = {
        storage_id(result_of(node)): path[1].key
        for node, path in zip(placeholders, paths, strict=False)  # noise comes after them
        if path[0].key == "constants"
    }
    if any(map(updates_batch_statistics, traced.graph.nodes)):
        raise CompileError("the policy's forward pass keeps statistics by batch normalization, which is not traced")
    written = {storage_id(tensor) for node in traced.graph.nodes for tensor in written_by(node)}
    return tuple(name for storage, name in names.items() if storage in written)


def refuse_writes(traced: fx.GraphModule, inputs: Inputs) -> None:
    """Raises ``CompileError`` where the graph writes to a buffer: it runs more often than the policy, or on padding."""
    for name in written_constants(traced, inputs):
        raise CompileError(f"the policy's forward pass writes to {name}; on a GPU, and of tokens, no graph does")
